package issuers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/run"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/shard"
)

const (
	// every is the pause between two looks at all issuers' keys.
	every      = 5 * time.Minute
	fetchLimit = 10 * time.Second
	// patience is how long a key must be missing before it is withdrawn for ever: while an issuer rolls out a new key, its
	// own machines contradict each other.
	patience = 4 * time.Minute
	// byIssuer withdraws the keys that are published no more.
	byIssuer = "issuer"
)

// Run looks for changed keys until the context ends.
func (s *Service) Run(ctx context.Context) error {
	return run.Every(ctx, every, s.refreshAll)
}

// refreshAll looks at every issuer of every tenant. One in trouble keeps its keys, and delays the others by its time limit.
func (s *Service) refreshAll(ctx context.Context) {
	tenants, err := s.store.Tenants(ctx)
	if err != nil {
		s.log.WarnContext(ctx, "the issuers' keys cannot be looked at", "error", err)
		return
	}
	for _, t := range tenants {
		list, err := s.list(ctx, t.ID)
		if err != nil {
			s.log.WarnContext(ctx, "a tenant's issuers cannot be read", "tenant", t.Name, "error", err)
			continue
		}
		for _, i := range list {
			if _, _, err := s.refresh(ctx, t.ID, "system", i.GetName()); err != nil && ctx.Err() == nil {
				s.log.WarnContext(ctx, "an issuer's keys cannot be had: those that are known go on to count", "tenant", t.Name, "issuer", i.GetName(), "error", err)
			}
		}
	}
}

// RefreshIssuer fetches an issuer's keys now.
func (s *Service) RefreshIssuer(ctx context.Context, req *adminv1.RefreshIssuerRequest) (*adminv1.RefreshIssuerResponse, error) {
	c := controlplane.CallerFrom(ctx)
	i, rev, err := s.refresh(ctx, c.TenantID, c.Actor(), req.GetName())
	if err != nil {
		return nil, err
	}
	return &adminv1.RefreshIssuerResponse{Issuer: i, Revision: rev}, nil
}

// refresh writes only when something has changed.
func (s *Service) refresh(ctx context.Context, tenant controlplane.TenantID, actor, name string) (after *adminv1.Issuer, rev uint64, err error) {
	var before *adminv1.Issuer
	err = s.store.Read(ctx, tenant, func(tx *store.Tx) error {
		row, err := tx.Issuer(ctx, name)
		if err == nil {
			before, err = read(row)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	keys, err := s.fetch(ctx, before.GetJwksUrl())
	if err != nil {
		return nil, 0, err
	}
	rev, err = s.store.Write(ctx, tenant, actor, func(tx *store.Tx) error {
		row, err := tx.Issuer(ctx, name)
		if err != nil {
			return err
		}
		if after, err = read(row); err != nil {
			return err
		}
		// Somebody has pointed it elsewhere meanwhile, and fetched from there.
		if after.GetJwksUrl() != before.GetJwksUrl() {
			return store.ErrNoChange
		}
		old := proto.CloneOf(after)
		if err := s.merge(after, keys); err != nil {
			return err
		}
		if proto.Equal(old, after) {
			return store.ErrNoChange
		}
		if after, err = s.put(ctx, tx, after); err != nil {
			return err
		}
		return tx.Change(ctx, "issuer.refresh", "issuer:"+name, describe(after))
	})
	return after, rev, err
}

// merge brings an issuer's keys up to what it publishes: new ones are added, those that stay missing are withdrawn, and what
// was withdrawn stays so, under whatever name it comes.
func (s *Service) merge(i *adminv1.Issuer, published []jose.Key) error {
	now := s.now().UnixMilli()
	dead := map[string]bool{}
	for _, k := range i.GetKeys() {
		if k.GetWithdrawnMs() != 0 {
			dead[string(k.GetPublicKey())] = true
		}
	}
	there := map[string]bool{}
	for _, k := range published {
		der, err := x509.MarshalPKIXPublicKey(k.Public)
		if err != nil {
			return fmt.Errorf("key %s: %w", k.KID, err)
		}
		same := func(o *adminv1.IssuerPublicKey) bool {
			return o.GetKid() == k.KID && o.GetAlg() == k.Alg && string(o.GetPublicKey()) == string(der)
		}
		there[string(der)] = true
		if !dead[string(der)] && !slices.ContainsFunc(i.GetKeys(), same) {
			i.Keys = append(i.Keys, &adminv1.IssuerPublicKey{Kid: k.KID, Alg: k.Alg, PublicKey: der, FirstMs: now})
		}
	}
	for _, k := range i.GetKeys() {
		switch {
		case k.GetWithdrawnMs() != 0:
		case there[string(k.GetPublicKey())]:
			k.MissingMs = 0
		case k.GetMissingMs() == 0:
			k.MissingMs = now
		case now-k.GetMissingMs() >= patience.Milliseconds():
			k.WithdrawnMs, k.WithdrawnBy = now, byIssuer
		}
	}
	return bounded(i)
}

// bounded forgets the keys that were withdrawn longest ago when there are too many: nobody signs with them any more.
func bounded(i *adminv1.Issuer) error {
	var live, dead []*adminv1.IssuerPublicKey
	for _, k := range i.GetKeys() {
		if k.GetWithdrawnMs() == 0 {
			live = append(live, k)
		} else {
			dead = append(dead, k)
		}
	}
	if len(live) > shard.MaxIssuerKeys {
		return problem.Newf(problem.Invalid, "", "issuer %s has %d keys: at most %d", i.GetName(), len(live), shard.MaxIssuerKeys)
	}
	if over := len(dead) - shard.MaxWithdrawn; over > 0 {
		slices.SortStableFunc(dead, func(a, b *adminv1.IssuerPublicKey) int { return cmp.Compare(a.GetWithdrawnMs(), b.GetWithdrawnMs()) })
		gone := dead[:over]
		i.Keys = slices.DeleteFunc(i.GetKeys(), func(k *adminv1.IssuerPublicKey) bool { return slices.Contains(gone, k) })
	}
	return nil
}

// ToSnapshot is an issuer as cells get it.
func ToSnapshot(row store.Issuer) (*snapshotv1.Issuer, error) {
	i, err := read(row)
	if err != nil {
		return nil, err
	}
	out := &snapshotv1.Issuer{
		Issuer: i.GetUrl(), Audiences: i.GetAudiences(), External: true, JwksUrl: i.GetJwksUrl(), AnyType: i.GetAnyType(),
		UserClaim: i.GetUserClaim(), UserDomain: i.GetUserDomain(), UserPrefix: i.GetUserPrefix(),
	}
	seen := map[[sha256.Size]byte]bool{}
	for _, k := range i.GetKeys() {
		if k.GetWithdrawnMs() == 0 {
			out.Keys = append(out.Keys, &snapshotv1.IssuerKey{Kid: k.GetKid(), Alg: k.GetAlg(), PublicKey: k.GetPublicKey()})
			continue
		}
		if sum := sha256.Sum256(k.GetPublicKey()); !seen[sum] {
			seen[sum] = true
			out.Withdrawn = append(out.Withdrawn, sum[:])
		}
	}
	for _, r := range i.GetScopes() {
		out.Scopes = append(out.Scopes, &snapshotv1.ScopeRule{Scope: r.GetScope(), Wider: r.GetWider(), Server: r.GetServer(), Effect: effect(r.GetEffect())})
	}
	return out, nil
}

func effect(word string) snapshotv1.Effect {
	switch word {
	case "":
		return snapshotv1.Effect_EFFECT_UNSPECIFIED
	case "read":
		return snapshotv1.Effect_EFFECT_READ
	case "write":
		return snapshotv1.Effect_EFFECT_WRITE
	}
	return snapshotv1.Effect_EFFECT_DESTRUCTIVE
}

// discover asks an issuer's metadata where its keys are (RFC 8414, section 3; OpenID Connect Discovery, section 4).
func (s *Service) discover(ctx context.Context, issuer string) (string, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return "", err
	}
	path := strings.TrimSuffix(u.Path, "/")
	oauth, openid := *u, *u
	oauth.Path = "/.well-known/oauth-authorization-server" + path
	openid.Path = path + "/.well-known/openid-configuration"
	var errs []error
	for _, at := range []string{openid.String(), oauth.String()} {
		raw, err := s.get(ctx, at)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
			continue
		}
		var doc struct {
			Issuer string `json:"issuer"`
			JWKS   string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
			continue
		}
		if doc.Issuer != issuer {
			return "", problem.Newf(problem.Invalid, "give the URL as the issuer writes it", "the metadata of %s is that of %q", issuer, doc.Issuer)
		}
		if egress.CheckSecure(doc.JWKS) != nil {
			return "", problem.Newf(problem.Invalid, "give an address with --jwks-url", "keys cannot be had safely from %q, which the issuer names", doc.JWKS)
		}
		return doc.JWKS, nil
	}
	return "", problem.Newf(problem.Unavailable, "check the URL and egress_allow, or give the address of the keys with --jwks-url",
		"the metadata of %s cannot be had", issuer).Because(errors.Join(errs...))
}

// fetch gets the keys of an issuer. A set without any that can be used is an error: it would take away all that is known.
func (s *Service) fetch(ctx context.Context, jwksURL string) ([]jose.Key, error) {
	raw, err := s.get(ctx, jwksURL)
	if err != nil {
		return nil, problem.Newf(problem.Unavailable, "check the address and egress_allow", "the issuer's keys cannot be had from %s: %v", jwksURL, err).Because(err)
	}
	keys, err := jose.ParseSet(raw)
	if err == nil && len(keys) == 0 {
		err = errors.New("no key for EdDSA, ES256, RS256 or PS256 is in it")
	}
	if err != nil {
		return nil, problem.Newf(problem.Invalid, "check the address", "what %s answers cannot be used: %v", jwksURL, err).Because(err)
	}
	return keys, nil
}

func (s *Service) get(ctx context.Context, at string) ([]byte, error) {
	if err := egress.CheckSecure(at); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %d", resp.StatusCode)
	}
	return io.ReadAll(io.LimitReader(resp.Body, jose.MaxSetSize+1))
}
