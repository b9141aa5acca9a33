package server

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/svid"
)

const (
	// ownTTL is how long this process's SVID lives; it is renewed when a seventh of that is over.
	ownTTL = 7 * 24 * time.Hour
	// lookAtIdentity is how often that is looked at.
	lookAtIdentity = time.Minute
)

// workloadDir is where the authorities of the cells' workloads are, which are never the nodes'.
func (c Config) workloadDir() string { return filepath.Join(c.KeysDir, "workloads") }

// openAuthority opens what signs SVIDs, nil when there is none here, and has it sign this process's own.
func openAuthority(cfg Config, log *slog.Logger) (*svid.Authority, error) {
	if cfg.CADir == "" {
		return nil, nil
	}
	a, err := svid.OpenAuthority(cfg.CADir, cfg.TrustDomain, log)
	if err != nil {
		return nil, problem.New(problem.Invalid, "the authority in ca_dir cannot be used", "make one: mcpvault trust ca create, trust ca issue").Because(err)
	}
	if os.Getenv(svid.SocketEnv) != "" || cfg.IdentityDir == "" {
		return a, nil
	}
	return a, renewOwn(cfg, a, time.Now())
}

var notInNames = regexp.MustCompile(`[^a-z0-9-]+`)

// ownName is the machine's, as an SVID can have it.
func ownName() string {
	host, _ := os.Hostname() // Without one, any name will do.
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	if name := strings.Trim(notInNames.ReplaceAllString(host, "-"), "-"); name != "" {
		return name
	}
	return "controlplane"
}

// renewOwn signs this process's SVID when there is none, a seventh of its life is over, or another authority signs now.
func renewOwn(cfg Config, a *svid.Authority, now time.Time) error {
	id, err := svid.ControlPlaneID(cfg.TrustDomain, ownName())
	if err != nil {
		return err
	}
	ca := a.CA()
	if held, ok := svid.Held(cfg.IdentityDir); ok {
		if held.Fresh(now) && string(held.Authority) == string(ca.Authority()) {
			return nil
		}
		id = held.ID // whoever issued the first one has chosen the name
	}
	cert, key, err := ca.IssueNode(id, ownTTL)
	if err != nil {
		return err
	}
	return svid.WriteIdentity(cfg.IdentityDir, cert, key, ca.Bundle())
}

// keepIdentity renews this process's SVID for as long as it runs.
func (s *server) keepIdentity(ctx context.Context) error {
	if s.authority == nil || os.Getenv(svid.SocketEnv) != "" || s.cfg.IdentityDir == "" {
		<-ctx.Done()
		return nil
	}
	return run.Every(ctx, lookAtIdentity, func(ctx context.Context) {
		if err := renewOwn(s.cfg, s.authority, time.Now()); err != nil {
			s.log.WarnContext(ctx, "this process's SVID could not be renewed", "error", err)
		}
	})
}
