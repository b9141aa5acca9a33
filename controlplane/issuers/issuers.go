// Package issuers keeps the authorization servers outside of MCPVault that a tenant trusts: whose access tokens its callers
// may bring, how these name users, and which scopes they need. It answers the admin API's IssuerService, and looks every few
// minutes for keys that the issuers have changed.
//
// What the cells need of it travels in the catalogue, keys included, so that an issuer's outage is noticed by nobody who has
// a token already. A key that counts no more, because its issuer publishes it no more or because somebody has withdrawn it,
// is remembered, and never counts again.
package issuers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

// ours is what the names of MCPVault's own issuers begin with.
const ours = "urn:mcpvault:"

// Config is what the service stands on.
type Config struct {
	Store *store.Store
	// Transport reaches the issuers; that of an egress.Guard.
	Transport http.RoundTripper
	// Now is nil for the wall clock.
	Now    func() time.Time
	Logger *slog.Logger
}

// Service answers the calls. It is safe for concurrent use.
type Service struct {
	store  *store.Store
	client *http.Client
	now    func() time.Time
	log    *slog.Logger
}

// New makes the service.
func New(cfg Config) *Service {
	s := &Service{
		store: cfg.Store, now: cfg.Now, log: cfg.Logger,
		client: &http.Client{Transport: cfg.Transport, Timeout: fetchLimit, CheckRedirect: egress.CheckRedirect},
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// PutIssuer writes an issuer's rules and fetches its keys. One whose keys cannot be had is not written.
func (s *Service) PutIssuer(ctx context.Context, req *adminv1.PutIssuerRequest) (*adminv1.PutIssuerResponse, error) {
	want := proto.CloneOf(req.GetIssuer())
	want.Keys, want.UpdatedBy, want.UpdatedMs = nil, "", 0
	if err := check(want); err != nil {
		return nil, err
	}
	if want.GetJwksUrl() == "" {
		found, err := s.discover(ctx, want.GetUrl())
		if err != nil {
			return nil, err
		}
		want.JwksUrl = found
	}
	keys, err := s.fetch(ctx, want.GetJwksUrl())
	if err != nil {
		return nil, err
	}
	res := &adminv1.PutIssuerResponse{}
	c := controlplane.CallerFrom(ctx)
	res.Revision, err = s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		next := proto.CloneOf(want)
		row, err := tx.Issuer(ctx, want.GetName())
		if err == nil {
			old, err := read(row)
			if err != nil {
				return err
			}
			// Keys of another issuer are none of this one.
			if old.GetUrl() == next.GetUrl() {
				next.Keys = old.GetKeys()
			}
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		list, err := tx.Issuers(ctx)
		if err != nil {
			return err
		}
		// One place is our own issuer's.
		if row.Name == "" && len(list) >= shard.MaxIssuers-1 {
			return problem.Newf(problem.Invalid, "delete one that is not used", "a tenant trusts at most %d issuers", shard.MaxIssuers-1)
		}
		if err := s.merge(next, keys); err != nil {
			return err
		}
		res.Issuer, err = s.put(ctx, tx, next)
		if err != nil {
			return err
		}
		return tx.Change(ctx, "issuer.put", "issuer:"+next.GetName(), describe(next))
	})
	if errors.Is(err, store.ErrDuplicate) {
		return nil, problem.Newf(problem.Conflict, "change that one, see `mcpvault issuer list`", "another issuer has the URL %s", want.GetUrl()).Because(err)
	}
	if err != nil {
		return nil, err
	}
	return res, nil
}

// check holds an issuer to what the proto cannot say.
func check(i *adminv1.Issuer) error {
	u, err := url.Parse(i.GetUrl())
	switch {
	case strings.HasPrefix(i.GetUrl(), ours):
		return problem.New(problem.Invalid, "MCPVault's own issuer is trusted already", "name one outside of it")
	case err != nil || u.RawQuery != "" || egress.CheckSecure(i.GetUrl()) != nil:
		return problem.Newf(problem.Invalid, "give the https address that its tokens have as iss", "%q cannot be an issuer", i.GetUrl())
	case i.GetJwksUrl() != "" && egress.CheckSecure(i.GetJwksUrl()) != nil:
		return problem.Newf(problem.Invalid, "give an https address", "keys cannot be had safely from %q", i.GetJwksUrl())
	case i.GetGroupsClaim() == "" && len(i.GetMappings()) > 0:
		return problem.New(problem.Invalid, "there are mappings, and no claim whose values they map", "name it: --groups-claim groups")
	}
	for _, text := range append([]string{i.GetUrl(), i.GetUserClaim(), i.GetGroupsClaim()}, i.GetAudiences()...) {
		if strings.ContainsFunc(text, func(r rune) bool { return r < 0x21 || r == 0x7f }) {
			return problem.Newf(problem.Invalid, "leave them out", "%q has spaces or control characters", text)
		}
	}
	return nil
}

func (s *Service) put(ctx context.Context, tx *store.Tx, i *adminv1.Issuer) (*adminv1.Issuer, error) {
	definition, err := proto.Marshal(i)
	if err != nil {
		return nil, err
	}
	row, err := tx.PutIssuer(ctx, store.Issuer{Name: i.GetName(), URL: i.GetUrl(), Definition: definition})
	if err != nil {
		return nil, err
	}
	return read(row)
}

// read is an issuer as its row has it.
func read(row store.Issuer) (*adminv1.Issuer, error) {
	i := &adminv1.Issuer{}
	if err := proto.Unmarshal(row.Definition, i); err != nil {
		return nil, fmt.Errorf("read issuer %s: %w", row.Name, err)
	}
	i.Name, i.Url, i.UpdatedBy, i.UpdatedMs = row.Name, row.URL, row.UpdatedBy, row.UpdatedAt.UnixMilli()
	return i, nil
}

// ListIssuers lists all, by name.
func (s *Service) ListIssuers(ctx context.Context, _ *adminv1.ListIssuersRequest) (*adminv1.ListIssuersResponse, error) {
	list, err := s.list(ctx, controlplane.CallerFrom(ctx).TenantID)
	return &adminv1.ListIssuersResponse{Issuers: list}, err
}

func (s *Service) list(ctx context.Context, tenant controlplane.TenantID) (list []*adminv1.Issuer, err error) {
	err = s.store.Read(ctx, tenant, func(tx *store.Tx) error {
		rows, err := tx.Issuers(ctx)
		list = make([]*adminv1.Issuer, 0, len(rows))
		for _, row := range rows {
			i, err := read(row)
			if err != nil {
				return err
			}
			list = append(list, i)
		}
		return err
	})
	return list, err
}

// DeleteIssuer ends the trust.
func (s *Service) DeleteIssuer(ctx context.Context, req *adminv1.DeleteIssuerRequest) (*adminv1.DeleteIssuerResponse, error) {
	c := controlplane.CallerFrom(ctx)
	rev, err := s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		row, err := tx.Issuer(ctx, req.GetName())
		if err != nil {
			return err
		}
		if err := tx.DeleteIssuer(ctx, row.Name); err != nil {
			return err
		}
		return tx.Change(ctx, "issuer.delete", "issuer:"+row.Name, map[string]any{"url": row.URL})
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeleteIssuerResponse{Revision: rev}, nil
}

// WithdrawIssuerKey takes the keys of a name out of use for ever.
func (s *Service) WithdrawIssuerKey(ctx context.Context, req *adminv1.WithdrawIssuerKeyRequest) (*adminv1.WithdrawIssuerKeyResponse, error) {
	c := controlplane.CallerFrom(ctx)
	res := &adminv1.WithdrawIssuerKeyResponse{}
	var err error
	res.Revision, err = s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		row, err := tx.Issuer(ctx, req.GetName())
		if err != nil {
			return err
		}
		i, err := read(row)
		if err != nil {
			return err
		}
		mine := func(k *adminv1.IssuerPublicKey) bool { return k.GetKid() == req.GetKid() }
		if !slices.ContainsFunc(i.GetKeys(), mine) {
			return problem.Newf(problem.NotFound, "see `mcpvault issuer list -o json`", "issuer %s has no key %s", i.GetName(), req.GetKid())
		}
		changed := false
		for _, k := range i.GetKeys() {
			if mine(k) && k.GetWithdrawnMs() == 0 {
				k.WithdrawnMs, k.WithdrawnBy, changed = s.now().UnixMilli(), c.Actor(), true
			}
		}
		if !changed {
			res.Issuer = i
			return store.ErrNoChange
		}
		if res.Issuer, err = s.put(ctx, tx, i); err != nil {
			return err
		}
		return tx.Change(ctx, "issuer.withdraw", "issuer:"+i.GetName(), map[string]any{"kid": req.GetKid()})
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// describe is what the ledger keeps: all rules, and the keys by name.
func describe(i *adminv1.Issuer) map[string]any {
	scopes, mappings, keys := []string{}, map[string]string{}, []string{}
	for _, r := range i.GetScopes() {
		scopes = append(scopes, scopeText(r))
	}
	for _, m := range i.GetMappings() {
		mappings[m.GetValue()] = m.GetTarget()
	}
	for _, k := range i.GetKeys() {
		if k.GetWithdrawnMs() == 0 {
			keys = append(keys, k.GetKid())
		}
	}
	return map[string]any{
		"url": i.GetUrl(), "jwks_url": i.GetJwksUrl(), "audiences": i.GetAudiences(), "any_type": i.GetAnyType(), "user_claim": i.GetUserClaim(),
		"user_domain": i.GetUserDomain(), "user_prefix": i.GetUserPrefix(), "scopes": scopes, "groups_claim": i.GetGroupsClaim(),
		"mappings": mappings, "create_users": i.GetCreateUsers(), "keys": keys,
	}
}

// scopeText writes a rule as the command line takes it: "[SERVER][/EFFECT]=SCOPE|WIDER", * for every server.
func scopeText(r *adminv1.IssuerScope) string {
	where := r.GetServer()
	if where == "" {
		where = "*"
	}
	if r.GetEffect() != "" {
		where += "/" + r.GetEffect()
	}
	return where + "=" + strings.Join(append([]string{r.GetScope()}, r.GetWider()...), "|")
}
