// Package renewal keeps a node's SVID young: each day, long before it ends, the node makes another key and has the control
// plane sign it. Without a control plane it goes on with what it has and says, from half of the SVID's life on, how long that
// will be.
package renewal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	// look is the longest time between two looks at the clock, which may jump, and at the files, which others may write.
	look = time.Hour
	// askLimit is how long the control plane may take.
	askLimit = 15 * time.Second
	// firstRetry and lastRetry bound the pause after a failure.
	firstRetry, lastRetry = 30 * time.Second, 15 * time.Minute
	// toldPause is the least time between two renewals because another authority signs: two control planes that are not of one
	// mind must not have a node renew for ever.
	toldPause = 30 * time.Second
	// spread is the part of the time until renewal that is added at random, so that nodes made together renew apart.
	spread = 0.1
)

// Signer is the control plane.
type Signer interface {
	RenewIdentity(ctx context.Context, req *cellv1.RenewIdentityRequest) (*cellv1.RenewIdentityResponse, error)
}

// Config is what a Keeper stands on.
type Config struct {
	// Dir is the identity directory.
	Dir    string
	Signer Signer
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Registerer takes this room's metrics; nil keeps none.
	Registerer prometheus.Registerer
}

// Keeper renews the SVID in one directory. It is safe for concurrent use.
type Keeper struct {
	cfg  Config
	wake chan struct{}
	// late is where in the spread this node is, from 0 to 1.
	late     float64
	renewals *prometheus.CounterVec

	mu     sync.Mutex // guards what follows
	failed error
	told   []byte
	// toldAt is when it last renewed because it was told to.
	toldAt time.Time
}

// New makes one.
func New(cfg Config) (*Keeper, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	k := &Keeper{cfg: cfg, wake: make(chan struct{}, 1), late: rand.Float64()} //nolint:gosec // as below
	k.renewals = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mcpvault_svid_renewals_total", Help: "Attempts to renew this node's SVID.",
	}, []string{"result"})
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(k.renewals); err != nil {
			return nil, fmt.Errorf("register the metrics of renewals: %w", err)
		}
	}
	return k, nil
}

// Told hears which authority signs now. When it is another than that of the node's SVID, the node renews at once.
func (k *Keeper) Told(authority []byte) {
	if len(authority) == 0 {
		return
	}
	k.mu.Lock()
	same := bytes.Equal(k.told, authority)
	k.told = bytes.Clone(authority)
	k.mu.Unlock()
	if same {
		return
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// Problem is why the newest attempt failed; nil after one that did not.
func (k *Keeper) Problem() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// Run renews until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var again time.Time // not before then
	pause := firstRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.wake:
		}
		now := k.cfg.Now()
		due := k.due(now)
		if due.Before(again) {
			due = again
		}
		if !now.Before(due) {
			if err := k.renew(ctx); err != nil {
				due = now.Add(pause/2 + rand.N(pause)) //nolint:gosec // to be apart from others, not secret
				again, pause = due, min(2*pause, lastRetry)
			} else {
				due, again, pause = now.Add(look), time.Time{}, firstRetry
			}
		}
		timer.Reset(max(min(due.Sub(now), look), time.Second))
	}
}

// due is when to renew.
func (k *Keeper) due(now time.Time) time.Time {
	held, ok := svid.Held(k.cfg.Dir)
	if !ok {
		return now.Add(look) // somebody is at the files
	}
	at := held.RenewAt()
	at = at.Add(time.Duration(float64(at.Sub(held.NotBefore)) * spread * k.late))
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.told) == 0 || bytes.Equal(k.told, held.Authority) {
		return at
	}
	if next := k.toldAt.Add(toldPause); now.Before(next) {
		return next
	}
	k.toldAt = now
	return now
}

func (k *Keeper) renew(ctx context.Context) error {
	held, until, err := k.ask(ctx)
	k.mu.Lock()
	k.failed = err
	k.mu.Unlock()
	if err == nil {
		k.renewals.WithLabelValues("ok").Inc()
		k.cfg.Logger.InfoContext(ctx, "the node's SVID was renewed", "until", until.UTC().Format(time.RFC3339))
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	k.renewals.WithLabelValues("failed").Inc()
	level := slog.LevelInfo
	if !k.cfg.Now().Before(held.HalfLife()) {
		level = slog.LevelWarn
	}
	k.cfg.Logger.Log(ctx, level, "the node's SVID could not be renewed; it goes on with the one it has",
		"until", held.NotAfter.UTC().Format(time.RFC3339), "error", err)
	return err
}

// ask has another key signed, and writes all of it. What is not an SVID for this very node changes nothing.
func (k *Keeper) ask(ctx context.Context) (held svid.Holding, until time.Time, err error) {
	held, ok := svid.Held(k.cfg.Dir)
	if !ok {
		return held, until, errors.New("the identity directory does not open")
	}
	key, err := svid.NewKey()
	if err != nil {
		return held, until, err
	}
	csr, err := svid.NewRequest(key, held.ID)
	if err != nil {
		return held, until, err
	}
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	res, err := k.cfg.Signer.RenewIdentity(ctx, &cellv1.RenewIdentityRequest{Csr: csr})
	if err != nil {
		return held, until, err
	}
	id := res.GetIdentity()
	if until, err = svid.Issued(id.GetSvid(), key, id.GetBundle(), held.ID, k.cfg.Now()); err != nil {
		return held, until, fmt.Errorf("the control plane's answer: %w", err)
	}
	if len(id.GetWorkloadBundle()) > 0 {
		if err := svid.WriteWorkloads(k.cfg.Dir, id.GetWorkloadBundle()); err != nil {
			return held, until, err
		}
	}
	return held, until, svid.WriteIdentity(k.cfg.Dir, id.GetSvid(), key, id.GetBundle())
}
