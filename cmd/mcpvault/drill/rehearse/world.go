package rehearse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/bench/drill/canary"
	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// Server is the name under which the canary is registered.
const Server = "drill-canary"

// persons is how many people call.
const persons = 4

// tools are what the canary offers.
func tools() load.Tools {
	t := load.Tools{Read: "read", Write: "write", Never: "never", Other: []string{touchTool}}
	for i := range 8 {
		t.Flips = append(t.Flips, fmt.Sprintf("flip%d", i))
	}
	return t
}

// world is what an installation is given for drills: people, a server that counts, and their rights.
type world struct {
	site   *Site
	canary *canary.Server
	people []load.Person
	tools  load.Tools
	// given are the rights that are in force between drills.
	given []judge.Right
	// newest is the revision of the last of them.
	newest uint64
}

// settleLimit is how long an installation may take to come to rest.
const settleLimit = 30 * time.Second

// newWorld makes what is missing. canaryListen and canaryURL say where the canary listens and how nodes reach it; "" for loopback.
func newWorld(ctx context.Context, s *Site, canaryListen, canaryURL string) (w *world, err error) {
	w = &world{site: s, tools: tools()}
	var offered []canary.Tool
	for _, t := range w.tools.All() {
		offered = append(offered, canary.Tool{Name: t, Effects: t == w.tools.Write})
	}
	if w.canary, err = canary.Start(canaryListen, offered); err != nil {
		return nil, err
	}
	if canaryURL == "" {
		canaryURL = w.canary.URL()
	}
	if err := w.register(ctx, canaryURL); err != nil {
		return nil, errors.Join(err, w.close(ctx))
	}
	for i := range persons {
		p, err := w.person(ctx, fmt.Sprintf("drill-%d", i+1))
		if err != nil {
			return nil, errors.Join(err, w.close(ctx))
		}
		w.people = append(w.people, p)
	}
	if err := (&policy{site: s}).wait(ctx, w.newest); err != nil {
		return nil, errors.Join(err, w.close(ctx))
	}
	return w, nil
}

func (w *world) register(ctx context.Context, url string) error {
	_, err := w.site.Admin.Registry.AddServer(ctx, &adminv1.AddServerRequest{Tenant: w.site.Tenant, Name: Server, Url: url, Description: "counts the calls of drills"})
	if admin.IsConflict(err) { // What an earlier run left.
		if _, err = w.site.Admin.Registry.RemoveServer(ctx, &adminv1.RemoveServerRequest{Tenant: w.site.Tenant, Name: Server}); err == nil {
			_, err = w.site.Admin.Registry.AddServer(ctx, &adminv1.AddServerRequest{Tenant: w.site.Tenant, Name: Server, Url: url, Description: "counts the calls of drills"})
		}
	}
	if err == nil {
		var scan *adminv1.ScanServerResponse
		if scan, err = w.site.Admin.Registry.ScanServer(ctx, &adminv1.ScanServerRequest{Tenant: w.site.Tenant, Name: Server}); err == nil && scan.GetServer().GetLastError() != "" {
			return fmt.Errorf("the canary cannot be reached: %s", scan.GetServer().GetLastError())
		}
	}
	if err == nil {
		_, err = w.site.Admin.Registry.ApproveVersion(ctx, &adminv1.ApproveVersionRequest{Tenant: w.site.Tenant, Name: Server, Source: adminv1.EffectSource_EFFECT_SOURCE_HINTS})
	}
	if err != nil {
		return fmt.Errorf("register the canary: %w", admin.Problem(err, w.site.Admin.URL))
	}
	return nil
}

func (w *world) person(ctx context.Context, name string) (load.Person, error) {
	s := w.site
	p := load.Person{Name: name, Host: s.Host}
	_, err := s.Admin.Directory.CreateUser(ctx, &adminv1.CreateUserRequest{Tenant: s.Tenant, Name: name, DisplayName: "Drill"})
	if admin.IsConflict(err) { // An earlier run has left them, switched off.
		_, err = s.Admin.Directory.SetUserDisabled(ctx, &adminv1.SetUserDisabledRequest{Tenant: s.Tenant, Name: name})
	}
	if err != nil {
		return p, fmt.Errorf("make %s: %w", name, admin.Problem(err, s.Admin.URL))
	}
	for _, tool := range []string{w.tools.Read, w.tools.Write} {
		r := judge.Right{Person: name, Tool: tool}
		made, err := s.Admin.Access.CreateGrant(ctx, grant(s.Tenant, r))
		if err != nil && !admin.IsConflict(err) {
			return p, fmt.Errorf("grant %s to %s: %w", tool, name, admin.Problem(err, s.Admin.URL))
		}
		w.given, w.newest = append(w.given, r), max(w.newest, made.GetRevision())
	}
	token, err := s.Admin.Tokens.CreateToken(ctx, &adminv1.CreateTokenRequest{Tenant: s.Tenant, Principal: name, Ttl: durationpb.New(12 * time.Hour)})
	if err != nil {
		return p, fmt.Errorf("make a token for %s: %w", name, admin.Problem(err, s.Admin.URL))
	}
	p.Token = token.GetSecret()
	return p, nil
}

// rights are in force between drills.
func (w *world) rights() []judge.Right { return w.given }

// keeps reports whether a grant is one of those.
func (w *world) keeps(g *adminv1.Grant) bool {
	return slices.ContainsFunc(w.given, func(r judge.Right) bool {
		return g.GetSubject() == "user:"+r.Person && g.GetTarget() == "server:"+Server+"/"+r.Tool
	})
}

// close takes the canary away, and from a real installation what it was given.
func (w *world) close(ctx context.Context) error {
	var err error
	if !w.site.Private {
		for _, r := range w.given {
			_, e := w.site.Admin.Access.DeleteGrants(ctx, revoke(w.site.Tenant, r))
			err = errors.Join(err, e)
		}
		for _, p := range w.people {
			_, e := w.site.Admin.Directory.SetUserDisabled(ctx, &adminv1.SetUserDisabledRequest{Tenant: w.site.Tenant, Name: p.Name, Disabled: true})
			err = errors.Join(err, e)
		}
		_, e := w.site.Admin.Registry.RemoveServer(ctx, &adminv1.RemoveServerRequest{Tenant: w.site.Tenant, Name: Server})
		err = errors.Join(err, e)
	}
	return errors.Join(err, w.canary.Stop())
}

func grant(tenant string, r judge.Right) *adminv1.CreateGrantRequest {
	return &adminv1.CreateGrantRequest{
		Tenant: tenant, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: "user:" + r.Person, Target: "server:" + Server + "/" + r.Tool, Reason: "drill",
	}
}

func revoke(tenant string, r judge.Right) *adminv1.DeleteGrantsRequest {
	return &adminv1.DeleteGrantsRequest{
		Tenant: tenant, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: "user:" + r.Person, Target: "server:" + Server + "/" + r.Tool,
	}
}

// policy makes the load's changes through the control plane.
type policy struct {
	site  *Site
	judge *judge.Judge
	// touched is the state of the right that touch changes, and person whose it is.
	touched *bool
	person  string

	mu      sync.Mutex // Guards what is below.
	astray  bool       // The control plane is not one that anybody may follow.
	made    []made     // in no order; those that not every node has acknowledged yet
	slowest time.Duration
}

// made is a change that the control plane has acknowledged.
type made struct {
	revision uint64
	change   *judge.Change
	nodes    map[string]bool
}

// changeLimit is how long a change may take to reach every node that is connected.
const changeLimit = 10 * time.Second

// Change gives or takes away a right.
func (p *policy) Change(ctx context.Context, r judge.Right, allowed bool, change *judge.Change) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	var revision uint64
	var err error
	if allowed {
		var resp *adminv1.CreateGrantResponse
		resp, err = p.site.Admin.Access.CreateGrant(ctx, grant(p.site.Tenant, r))
		revision = resp.GetRevision()
	} else {
		var resp *adminv1.DeleteGrantsResponse
		resp, err = p.site.Admin.Access.DeleteGrants(ctx, revoke(p.site.Tenant, r))
		revision = resp.GetRevision()
	}
	if err != nil {
		err = admin.Problem(err, p.site.Admin.URL)
		if code := problem.CodeOf(err); code == problem.Conflict || code == problem.NotFound {
			return nil // An earlier change whose outcome was not known had been made.
		}
		return err
	}
	p.mu.Lock()
	astray := p.astray
	if !astray {
		p.made = append(p.made, made{revision, change, map[string]bool{}})
	}
	p.mu.Unlock()
	if astray {
		change.Void()
		return errors.New("it was made where it does not count")
	}
	err = p.wait(ctx, revision)
	return err
}

// wait returns when every connected node has a revision.
func (p *policy) wait(ctx context.Context, revision uint64) error {
	resp, err := p.site.Admin.Snapshots.WaitRevision(ctx, &adminv1.WaitRevisionRequest{Tenant: p.site.Tenant, Revision: revision, Timeout: durationpb.New(changeLimit)})
	if err != nil {
		return admin.Problem(err, p.site.Admin.URL)
	}
	var have []string
	for _, a := range resp.GetAcks() {
		if a.GetStatus() == "applied" && a.GetGeneration() >= resp.GetGeneration() {
			have = append(have, a.GetCell()+"/"+a.GetNode())
		}
	}
	p.acknowledged(revision, have, time.Duration(resp.GetElapsedMs()*float64(time.Millisecond)))
	if !resp.GetComplete() {
		return fmt.Errorf("revision %d did not reach every connected node within %s", revision, changeLimit)
	}
	return nil
}

// touchTool is the tool of the right that touch changes. The load leaves it alone.
const touchTool = "touch"

// touch makes one change and returns the nodes that have it.
func (p *policy) touch(ctx context.Context) ([]string, error) {
	*p.touched = !*p.touched
	r := judge.Right{Person: p.person, Tool: touchTool}
	change := p.judge.Submit(r, *p.touched)
	if err := p.Change(ctx, r, *p.touched, change); err != nil {
		return nil, err
	}
	return change.Nodes(), nil
}

// acknowledged notes that nodes have a revision, and so every one before it.
func (p *policy) acknowledged(revision uint64, nodes []string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slowest = max(p.slowest, took)
	for _, m := range p.made {
		if m.revision > revision {
			continue
		}
		for _, n := range nodes {
			if !m.nodes[n] {
				m.nodes[n] = true
				m.change.Acked(n)
			}
		}
	}
	p.made = slices.DeleteFunc(p.made, func(m made) bool { return len(m.nodes) >= len(p.site.Nodes) })
}

// propagation is the longest time that a change took.
func (p *policy) propagation() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slowest
}
