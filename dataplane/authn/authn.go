// Package authn turns a bearer credential into a principal, with nothing but the keys of the caller's tenant: no network,
// no store, no control plane. Only for a key that the snapshot does not know, somebody else is asked, within their bounds.
//
// It promises that a principal comes only out of a token that one of the tenant's issuers has signed for one of that
// issuer's audiences, that is about this tenant, and that holds at this moment. What is remembered between requests is
// the cryptographic result alone, under a key that changes with the token, the tenant, the audiences and the issuers'
// keys; everything else is judged each time. Whether somebody has revoked the token is not known here: the pipeline asks
// the live policy, before and after.
package authn

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	jsonv2 "github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/kit/jose"
)

// DefaultLeeway is how far the clocks of an issuer and of this node may differ.
const DefaultLeeway = 60 * time.Second

// DefaultCacheSize is how many tokens are remembered.
const DefaultCacheSize = 1 << 16

// Config is what an Authenticator needs; the zero value works.
type Config struct {
	// Now is the node's trusted time; nil means the wall clock.
	Now func() time.Time
	// Leeway is DefaultLeeway when 0.
	Leeway time.Duration
	// CacheSize is the number of tokens remembered, DefaultCacheSize when 0.
	CacheSize int64
	// Newer finds keys that an issuer has begun to use since the snapshot; nil looks for none.
	Newer Newer
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

// Newer finds the keys of a name at the address that an issuer is pinned to. It may wait for that address, for as long
// and as often as it has bounds for. The keys may be used until the time that it gives.
type Newer interface {
	Keys(jwksURL, kid string) (keys []jose.Key, until time.Time)
}

// TenantKeys is whom a tenant trusts. It is a value of the live policy and is never written to.
type TenantKeys struct {
	// TenantID is the tenant's row id, Tenant its name as the tenant claim spells it.
	TenantID, Tenant string
	Issuers          []Issuer
	// KeySet changes whenever a key of any issuer is added, removed or replaced, or anything else that is written of one.
	KeySet uint64
}

// Issuer is bound to one tenant.
type Issuer struct {
	// Issuer is compared exactly with the iss claim.
	Issuer string
	// Audiences are the ones accepted from this issuer, compared exactly.
	Audiences []string
	Keys      []jose.Key
	// External is an issuer outside MCPVault, whose tokens need no tenant claim and no jti. A tenant claim that is there
	// must still match.
	External bool
	// AnyType takes tokens that do not call themselves access tokens.
	AnyType bool
	// JWKSURL is where keys may be that are newer than Keys, "" for nowhere; those in Withdrawn are not taken from there.
	JWKSURL   string
	Withdrawn map[[sha256.Size]byte]bool
	// User says how tokens of an outside issuer name principals.
	User UserClaim
	// ScopeRules are what tokens of an outside issuer need.
	ScopeRules []ScopeRule
}

// UserClaim is the way from a token's claims to the name of a principal.
type UserClaim struct {
	// Claim is sub when empty.
	Claim string
	// Domain must end the claim, behind an @, and is cut off; "" takes the claim as it is.
	Domain string
	// Prefix is put before the name.
	Prefix string
}

// Principal is who calls.
type Principal struct {
	// Name is what policy knows them by.
	Name string
	// Issuer and Subject are the token's; together they never mean another person.
	Issuer, Subject string
	// JTI names the token, KeyID the key that signed it, so that either can be revoked.
	JTI, KeyID string
	// ClientID is the OAuth client that got the token, "" when the token does not say.
	ClientID string
	// Type is user, service_account or workload.
	Type string
	// Actor is who acts for the principal, "" when nobody does; Actors counts those that the token names, one behind the
	// other.
	Actor     string
	Actors    int
	ExpiresAt time.Time
	// Exact means that ExpiresAt is without leeway.
	Exact bool
	// Bound is the thumbprint of the one certificate with which the token may be used, "" when it is bound to none. Whether
	// the caller has it is for the pipeline to ask.
	Bound string
	// Scope holds the token's scopes, with spaces between them.
	Scope string
}

// Authenticator checks bearer tokens. It may be used by many goroutines; Close ends it.
type Authenticator struct {
	now    func() time.Time
	leeway int64
	cache  *ristretto.Cache[uint64, *verdict]
	newer  Newer
	count  *metrics
}

// verdict is a token whose signature was right.
type verdict struct {
	key    [sha256.Size]byte
	claims claims
	// until is when the key that signed it stops to count, in seconds; 0 for a key of the snapshot.
	until int64
}

// New makes an Authenticator.
func New(cfg Config) (*Authenticator, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = DefaultLeeway
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = DefaultCacheSize
	}
	const countersPerItem, bufferItems = 10, 64 // the library's advice
	cache, err := ristretto.NewCache(&ristretto.Config[uint64, *verdict]{
		NumCounters: countersPerItem * cfg.CacheSize, MaxCost: cfg.CacheSize, BufferItems: bufferItems,
		IgnoreInternalCost: true,
		// The key is a part of a hash already; the rest of it is compared on every hit.
		KeyToHash: func(k uint64) (uint64, uint64) { return k, 0 },
	})
	if err != nil {
		return nil, fmt.Errorf("make the token cache: %w", err)
	}
	count, err := newMetrics(cfg.Registerer)
	if err != nil {
		cache.Close()
		return nil, err
	}
	return &Authenticator{now: cfg.Now, leeway: int64(cfg.Leeway / time.Second), cache: cache, newer: cfg.Newer, count: count}, nil
}

// Close ends the cache's goroutines. Bearer must not be called after it.
func (a *Authenticator) Close() { a.cache.Close() }

// Bearer returns the principal that the token names, or an *Error.
func (a *Authenticator) Bearer(token string, t TenantKeys) (Principal, error) {
	return a.BearerFor(token, t)
}

// BearerFor is Bearer with audiences that are accepted from every issuer besides its own: the public URLs under which
// the client reaches this tenant.
func (a *Authenticator) BearerFor(token string, t TenantKeys, audiences ...string) (Principal, error) {
	p, cached, err := a.bearer(token, &t, audiences)
	a.count.one(cached, err)
	return p, err
}

func (a *Authenticator) bearer(token string, t *TenantKeys, audiences []string) (Principal, bool, error) {
	switch {
	case token == "":
		return Principal{}, false, refuse(TokenMissing, nil)
	case len(token) > jose.MaxSize:
		return Principal{}, false, refuse(TokenTooLarge, nil)
	}
	key := cacheKey(token, t, audiences)
	slot := binary.LittleEndian.Uint64(key[:])
	v, cached := a.cache.Get(slot)
	if cached = cached && v.key == key && (v.until == 0 || a.now().Unix() < v.until); !cached {
		var err error
		if v, err = a.verify(token, t); err != nil {
			return Principal{}, false, err
		}
		v.key = key
	}
	if err := v.claims.hold(t, audiences, a.now().Unix(), a.leeway); err != nil {
		return Principal{}, cached, err
	}
	if !cached {
		// It may be dropped; then the next request verifies again.
		a.cache.Set(slot, v, 1)
	}
	return v.claims.principal(), cached, nil
}

// verify finds the issuer that the token names and lets only that one's keys vouch for it.
func (a *Authenticator) verify(token string, t *TenantKeys) (*verdict, error) {
	u, err := jose.ParseAny(token)
	if err != nil {
		return nil, refuse(reasonOf(err), err)
	}
	var says struct {
		Issuer string `json:"iss"`
	}
	if err := jsonv2.Unmarshal(u.UnverifiedClaims(), &says); err != nil {
		return nil, refuse(TokenMalformed, err)
	}
	issuer := t.Issuer(says.Issuer)
	if issuer == nil {
		return nil, refuse(TokenIssuer, nil)
	}
	if !u.Access && !issuer.AnyType {
		return nil, refuse(TokenMalformed, jose.ErrType)
	}
	v := &verdict{}
	raw, err := u.Verify(issuer.Keys)
	if errors.Is(err, jose.ErrUnknownKey) {
		raw, v.until, err = a.verifyNewer(u, issuer)
	}
	if err != nil {
		return nil, refuse(reasonOf(err), err)
	}
	v.claims, err = parseClaims(raw)
	if errors.Is(err, errBinding) {
		return nil, refuse(TokenBinding, err)
	}
	if err != nil {
		return nil, refuse(TokenMalformed, err)
	}
	v.claims.KeyID = u.KID
	v.claims.Name = v.claims.Subject
	if issuer.External {
		if err := v.claims.outside(raw, &issuer.User); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// verifyNewer verifies with keys that the issuer began to use after the snapshot was made. Those that it, or anybody,
// has withdrawn are none.
func (a *Authenticator) verifyNewer(u *jose.Unverified, issuer *Issuer) (raw json.RawMessage, until int64, err error) {
	if a.newer == nil || issuer.JWKSURL == "" {
		return nil, 0, jose.ErrUnknownKey
	}
	found, end := a.newer.Keys(issuer.JWKSURL, u.KID)
	keys := make([]jose.Key, 0, len(found))
	for _, k := range found {
		if sum, err := k.Thumbprint(); err == nil && !issuer.Withdrawn[sum] {
			keys = append(keys, k)
		}
	}
	raw, err = u.Verify(keys)
	return raw, end.Unix(), err
}

// Issuer finds an issuer by its name, nil when the tenant has none of it.
func (t *TenantKeys) Issuer(name string) *Issuer {
	if name == "" {
		return nil
	}
	for i := range t.Issuers {
		if t.Issuers[i].Issuer == name {
			return &t.Issuers[i]
		}
	}
	return nil
}

func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, jose.ErrTooLarge):
		return TokenTooLarge
	case errors.Is(err, jose.ErrAlgorithm):
		return TokenAlgorithm
	case errors.Is(err, jose.ErrSignature), errors.Is(err, jose.ErrUnknownKey):
		return TokenSignature
	}
	return TokenMalformed
}

// cacheKey is a hash of everything that the cryptographic result depends on. The token itself is not kept.
func cacheKey(token string, t *TenantKeys, audiences []string) [sha256.Size]byte {
	var space [2048]byte
	b := appendField(space[:0], token)
	b = binary.LittleEndian.AppendUint64(b, t.KeySet)
	b = appendField(b, t.TenantID)
	b = appendField(b, t.Tenant)
	for i := range t.Issuers {
		b = appendField(b, t.Issuers[i].Issuer)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(t.Issuers[i].Audiences)))
		for _, aud := range t.Issuers[i].Audiences {
			b = appendField(b, aud)
		}
	}
	for _, aud := range audiences {
		b = appendField(b, aud)
	}
	return sha256.Sum256(b)
}

// appendField writes the length first, so that no two lists of fields look the same.
func appendField(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
}
