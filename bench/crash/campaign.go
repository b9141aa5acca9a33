// Command crash kills the processes of a running installation at random points, under load, and then looks whether anything that
// was promised has been lost: acknowledged grants, kills and sessions, calls with effects, audit records. What it looks with
// shares no code with what decides in the product: it knows JSON over HTTP and the bytes of the audit log.
//
//	go run ./bench/crash kills -n 200 -seed 1 -o report.json
//	go run ./bench/crash flips -n 100      # bits flipped and files cut off on the disk of a node
//	go run ./bench/crash broken            # the checker itself: builds that are broken on purpose must all be caught
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// Config is one campaign.
type Config struct {
	// Bin is the mcpvault under test.
	Bin string
	// Kills is how many SIGKILLs; Seed makes where they strike the same again, as far as timing lets it.
	Kills int
	Seed  uint64
	// Log takes a line for each step; nil for nobody.
	Log func(format string, args ...any)
}

// Report is what was found. Nothing in Found means that everything held.
type Report struct {
	Seed      uint64         `json:"seed"`
	Kills     int            `json:"kills"`
	Victims   map[string]int `json:"victims"`
	Calls     int            `json:"calls"`
	Answered  int            `json:"calls_answered"`
	Refused   int            `json:"calls_refused"`
	Broken    int            `json:"calls_broken_off"`
	NotSent   int            `json:"calls_not_sent"`
	Doubles   int            `json:"calls_carried_out_twice"`
	Unknown   int            `json:"outcomes_recorded_as_unknown"`
	Changes   int            `json:"changes_acknowledged"`
	Killed    int            `json:"users_killed"`
	Sessions  int            `json:"sessions_opened"`
	Ended     int            `json:"sessions_ended"`
	History   int            `json:"operations_in_histories"`
	RestartMS Spread         `json:"restart_ms"`
	Found     []string       `json:"found"`
}

// Spread describes some durations in milliseconds.
type Spread struct {
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
	N      int     `json:"n"`
}

type campaign struct {
	cfg    Config
	dev    *devrun.Dev
	admin  *admin
	canary *canary
	rng    *rand.Rand

	stop atomic.Bool

	mu       sync.Mutex // guards all below
	report   Report
	calls    []*call
	grants   map[string]*register
	doomed   []*doomed
	sessions []*session
	history  history
	restarts []time.Duration
}

// doomed is a user who is killed at some time.
type doomed struct {
	name, token  string
	asked, acked bool
}

// session is one of a legacy client.
type session struct {
	id string
	// ended: asked for, acknowledged.
	asked, ended bool
	last         time.Time
}

const (
	callers   = 6
	changers  = 3
	perMinute = 20 // users killed, at most
)

// run does one campaign on an installation of its own.
func run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Log == nil {
		cfg.Log = func(string, ...any) {}
	}
	dev, err := devrun.Start(ctx, cfg.Bin)
	if err != nil {
		return nil, err
	}
	c := &campaign{
		cfg: cfg, dev: dev, rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
		admin: &admin{url: dev.AdminURL, token: dev.AdminToken}, grants: map[string]*register{},
		report: Report{Seed: cfg.Seed, Victims: map[string]int{}, Found: []string{}},
	}
	err = c.campaign(ctx)
	c.canary.close()
	if keep := os.Getenv("CRASH_KEEP"); keep != "" && (err != nil || len(c.report.Found) > 0) {
		_ = os.CopyFS(keep, os.DirFS(dev.Dir)) // for whoever wants to look
	}
	return &c.report, errors.Join(err, dev.Stop())
}

func (c *campaign) campaign(ctx context.Context) error {
	c.canary = newCanary()
	if err := c.prepare(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { c.caller(ctx, i) })
	}
	for i := range changers {
		wg.Go(func() { c.changer(ctx, fmt.Sprintf("changer%d", i)) })
	}
	wg.Go(func() { c.killer(ctx) })
	for i := range 2 {
		wg.Go(func() { c.sessionist(ctx, i) })
	}
	err := c.disturb(ctx)
	c.stop.Store(true)
	wg.Wait()
	if err != nil {
		return err
	}
	return c.check(ctx)
}

func (c *campaign) found(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.report.Found) < 50 {
		c.report.Found = append(c.report.Found, fmt.Sprintf(format, args...))
	}
}

// prepare makes what the load needs: a server that counts, and people.
func (c *campaign) prepare(ctx context.Context) error {
	for _, args := range [][]string{
		{"server", "add", "canary", "--url", c.canary.url},
		{"server", "approve", "canary", "--effect", "write"},
		{"grant", "alice", "canary/effect"},
		{"grant", "alice", "canary/bounded", "--when", "context.args.n < 10"},
	} {
		if _, err := c.dev.CLI(ctx, args...); err != nil {
			return err
		}
	}
	for i := range changers {
		name := fmt.Sprintf("changer%d", i)
		token, err := c.person(ctx, name)
		if err != nil {
			return err
		}
		c.grants[name] = &register{token: token, may: map[bool]bool{true: true}}
	}
	for i := range min(4+c.cfg.Kills, 60) {
		name := fmt.Sprintf("doomed%d", i)
		token, err := c.person(ctx, name)
		if err != nil {
			return err
		}
		c.doomed = append(c.doomed, &doomed{name: name, token: token})
	}
	return c.settle(ctx)
}

// person makes a user who may call the canary, and returns a token.
func (c *campaign) person(ctx context.Context, name string) (string, error) {
	if err := c.admin.post(ctx, "DirectoryService/CreateUser", map[string]any{"tenant": "acme", "name": name, "kind": "USER_KIND_PERSON"}, nil); err != nil {
		return "", err
	}
	if err := c.grant(ctx, name, true); err != nil {
		return "", err
	}
	var made struct {
		Secret string `json:"secret"`
	}
	err := c.admin.post(ctx, "TokenService/CreateToken", map[string]any{"tenant": "acme", "principal": name}, &made)
	return made.Secret, err
}

func (c *campaign) grant(ctx context.Context, name string, on bool) error {
	procedure := "AccessService/DeleteGrants"
	if on {
		procedure = "AccessService/CreateGrant"
	}
	return c.admin.post(ctx, procedure, map[string]any{
		"tenant": "acme", "effect": "GRANT_EFFECT_ALLOW", "subject": "user:" + name, "target": "server:canary/effect",
	}, nil)
}

// settle waits until every node and the control plane are ready and serve the newest generation.
func (c *campaign) settle(ctx context.Context) error {
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if c.settled(ctx) {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("the installation is not whole again within a minute")
}

func (c *campaign) settled(ctx context.Context) bool {
	var list struct {
		Tenants []struct {
			Name     string `json:"name"`
			Revision string `json:"revision"`
		} `json:"tenants"`
	}
	if c.admin.post(ctx, "OrganisationService/ListTenants", map[string]any{}, &list) != nil {
		return false
	}
	for _, t := range list.Tenants {
		if t.Name != "acme" {
			continue
		}
		var w struct {
			Complete bool              `json:"complete"`
			Acks     []json.RawMessage `json:"acks"`
		}
		err := c.admin.post(ctx, "SnapshotService/WaitRevision", map[string]any{"tenant": "acme", "revision": t.Revision, "timeout": "2s"}, &w)
		if err != nil || !w.Complete || len(w.Acks) < len(c.dev.MCPURLs) {
			return false
		}
	}
	for n := range c.dev.MCPURLs {
		if !c.ready(ctx, n) {
			return false
		}
	}
	return true
}

func (c *campaign) ready(ctx context.Context, node int) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.dev.Metrics[node]+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := (&http.Client{Timeout: time.Second}).Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
