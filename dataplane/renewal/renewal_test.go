package renewal_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/renewal"
	"github.com/mcpvault/mcpvault/kit/svid"
	"google.golang.org/protobuf/proto"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	domain = "mcpvault.test"
	week   = 7 * 24 * time.Hour
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// controlPlane signs, unless it is away.
type controlPlane struct {
	mu      sync.Mutex
	ca      *svid.CA
	id      svid.ID
	away    error
	bend    func(*cellv1.MachineIdentity)
	at      []time.Time // when it was asked
	renewed int
}

func (c *controlPlane) RenewIdentity(_ context.Context, req *cellv1.RenewIdentityRequest) (*cellv1.RenewIdentityResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = append(c.at, time.Now())
	if c.away != nil {
		return nil, c.away
	}
	chain, err := c.ca.SignRequest(req.GetCsr(), c.id, week)
	if err != nil {
		return nil, err
	}
	id := &cellv1.MachineIdentity{Svid: chain, Bundle: c.ca.Bundle(), WorkloadBundle: c.ca.Bundle()}
	if c.bend != nil {
		c.bend(id)
	}
	c.renewed++
	return &cellv1.RenewIdentityResponse{Identity: id}, nil
}

func (c *controlPlane) set(change func(*controlPlane)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

func (c *controlPlane) count() (asked, renewed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.at), c.renewed
}

// page is a log that can be read while it is written.
type page struct {
	mu sync.Mutex
	b  strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

type bundle struct {
	dir    string
	cp     *controlPlane
	keeper *renewal.Keeper
	log    *page
	end    func()
}

// start runs a keeper, within a bubble, on an SVID that was issued just now.
func start(t *testing.T) *bundle {
	t.Helper()
	id, err := svid.NodeID(domain, "eu", "n1")
	must(t, err)
	ca, err := svid.CreateCA(t.TempDir(), domain)
	must(t, err)
	b := &bundle{dir: t.TempDir(), cp: &controlPlane{ca: ca, id: id}, log: &page{}}
	cert, key, err := ca.IssueNode(id, week)
	must(t, err)
	must(t, svid.WriteIdentity(b.dir, cert, key, ca.Bundle()))
	b.keeper, err = renewal.New(renewal.Config{Dir: b.dir, Signer: b.cp, Logger: slog.New(slog.NewTextHandler(b.log, nil))})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.keeper.Run(ctx) }()
	b.end = func() { cancel(); must(t, <-done) }
	return b
}

func (b *bundle) held(t *testing.T) svid.Holding {
	t.Helper()
	h, ok := svid.Held(b.dir)
	if !ok {
		t.Fatal("the identity does not open")
	}
	return h
}

func TestAnSVIDIsRenewedEachDayForAnotherKey(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		defer b.end()
		key, err := os.ReadFile(filepath.Join(b.dir, "key.pem"))
		must(t, err)
		time.Sleep(23 * time.Hour)
		if asked, _ := b.cp.count(); asked != 0 {
			t.Fatal("it was renewed before a day was over")
		}
		time.Sleep(5 * time.Hour) // with the spread
		if asked, renewed := b.cp.count(); asked != 1 || renewed != 1 {
			t.Fatalf("asked %d times, renewed %d times", asked, renewed)
		}
		if left := time.Until(b.held(t).NotAfter); left < 6*24*time.Hour {
			t.Errorf("it is good for %s", left)
		}
		next, err := os.ReadFile(filepath.Join(b.dir, "key.pem"))
		must(t, err)
		if string(next) == string(key) {
			t.Error("the key is the same")
		}
		if _, err := os.Stat(filepath.Join(b.dir, svid.WorkloadsFile)); err != nil {
			t.Error(err)
		}
		time.Sleep(week)
		if _, renewed := b.cp.count(); renewed < 7 || renewed > 9 {
			t.Errorf("renewed %d times in a week", renewed)
		}
	})
}

func TestANodeOutlivesItsControlPlane(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		b.cp.set(func(c *controlPlane) { c.away = errors.New("connection refused") })
		first := b.held(t)
		time.Sleep(3 * 24 * time.Hour)
		if strings.Contains(b.log.String(), "level=WARN") {
			t.Error("it warns before half of the SVID's life is over")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if !strings.Contains(b.log.String(), "level=WARN") || b.keeper.Problem() == nil {
			t.Error("half of the SVID's life is over and nobody is told")
		}
		asked, _ := b.cp.count()
		if asked < 100 || asked > 700 {
			t.Errorf("asked %d times in four days", asked)
		}
		if now := b.held(t); !now.NotAfter.Equal(first.NotAfter) {
			t.Error("the SVID has changed")
		}
		// It is back: within the longest pause the node has caught up.
		b.cp.set(func(c *controlPlane) { c.away = nil })
		time.Sleep(25 * time.Minute)
		if left := time.Until(b.held(t).NotAfter); left < 6*24*time.Hour || b.keeper.Problem() != nil {
			t.Errorf("it is good for %s, %v", left, b.keeper.Problem())
		}
		b.end()
	})
}

func TestANewAuthorityIsTakenAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := start(t)
		defer b.end()
		old := b.held(t)
		b.keeper.Told(old.Authority)
		b.keeper.Told(nil)
		time.Sleep(time.Hour)
		if asked, _ := b.cp.count(); asked != 0 {
			t.Fatal("it renews though nothing is new")
		}
		next, err := svid.CreateCA(t.TempDir(), domain)
		must(t, err)
		b.cp.set(func(c *controlPlane) { c.ca = next })
		b.keeper.Told(next.Authority())
		time.Sleep(time.Second)
		if got := b.held(t); string(got.Authority) != string(next.Authority()) {
			t.Fatal("it still has the old one")
		}
		// Two control planes of two minds do not have it renew for ever.
		for range 600 {
			b.keeper.Told(old.Authority)
			time.Sleep(time.Second)
			b.keeper.Told(next.Authority())
			time.Sleep(time.Second)
		}
		if asked, _ := b.cp.count(); asked > 42 {
			t.Errorf("renewed %d times in twenty minutes", asked)
		}
	})
}

func TestWhatIsNoSVIDOfThisNodeIsNotTaken(t *testing.T) {
	t.Parallel()
	other, err := svid.CreateCA(t.TempDir(), domain)
	must(t, err)
	for name, bend := range map[string]func(*cellv1.MachineIdentity){
		"nothing":           func(id *cellv1.MachineIdentity) { proto.Reset(id) },
		"another authority": func(id *cellv1.MachineIdentity) { id.Bundle = other.Bundle() },
		"another key": func(id *cellv1.MachineIdentity) {
			nodeID, err := svid.NodeID(domain, "eu", "n1")
			must(t, err)
			id.Svid, _, err = other.IssueNode(nodeID, week)
			must(t, err)
			id.Bundle = other.Bundle()
		},
		"no workloads' authority": func(id *cellv1.MachineIdentity) { id.WorkloadBundle = []byte("hello") },
	} {
		synctest.Test(t, func(t *testing.T) {
			b := start(t)
			defer b.end()
			before := b.held(t)
			b.cp.set(func(c *controlPlane) { c.bend = bend })
			time.Sleep(30 * time.Hour)
			synctest.Wait()
			if asked, _ := b.cp.count(); asked == 0 || b.keeper.Problem() == nil {
				t.Errorf("%s: asked %d times, %v", name, asked, b.keeper.Problem())
			}
			if got := b.held(t); !got.NotAfter.Equal(before.NotAfter) {
				t.Errorf("%s is taken", name)
			}
		})
	}
}
