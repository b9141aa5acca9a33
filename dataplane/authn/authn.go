// Package authn turns a bearer credential into a principal, with nothing but the keys of the caller's tenant: no network,
// no store, no control plane.
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
	"errors"
	"fmt"
	"time"
	"unsafe"

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
	// Registerer takes the metrics; it may be nil.
	Registerer prometheus.Registerer
}

// TenantKeys is whom a tenant trusts. It is a value of the live policy and is never written to.
type TenantKeys struct {
	// TenantID is the tenant's row id, Tenant its name as the tenant claim spells it.
	TenantID, Tenant string
	Issuers          []Issuer
	// KeySet changes whenever a key of any issuer is added, removed or replaced.
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
	// Actor is who acts for the principal, "" when nobody does.
	Actor     string
	ExpiresAt time.Time
	// Exact means that ExpiresAt is without leeway.
	Exact bool
	// Bound is the thumbprint of the one certificate with which the token may be used, "" when it is bound to none. Whether
	// the caller has it is for the pipeline to ask.
	Bound string
}

// Authenticator checks bearer tokens. It may be used by many goroutines; Close ends it.
type Authenticator struct {
	now    func() time.Time
	leeway int64
	cache  *ristretto.Cache[uint64, *verdict]
	count  *metrics
}

// verdict is a token whose signature was right.
type verdict struct {
	key    [sha256.Size]byte
	claims claims
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
	return &Authenticator{now: cfg.Now, leeway: int64(cfg.Leeway / time.Second), cache: cache, count: count}, nil
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
	if cached = cached && v.key == key; !cached {
		c, err := verify(token, t)
		if err != nil {
			return Principal{}, false, err
		}
		v = &verdict{key: key, claims: c}
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
func verify(token string, t *TenantKeys) (claims, error) {
	u, err := jose.Parse(token)
	if err != nil {
		return claims{}, refuse(reasonOf(err), err)
	}
	var says struct {
		Issuer string `json:"iss"`
	}
	if err := jsonv2.Unmarshal(u.UnverifiedClaims(), &says); err != nil {
		return claims{}, refuse(TokenMalformed, err)
	}
	issuer := t.issuer(says.Issuer)
	if issuer == nil {
		return claims{}, refuse(TokenIssuer, nil)
	}
	raw, err := u.Verify(issuer.Keys)
	if err != nil {
		return claims{}, refuse(reasonOf(err), err)
	}
	c, err := parseClaims(raw)
	if errors.Is(err, errBinding) {
		return claims{}, refuse(TokenBinding, err)
	}
	if err != nil {
		return claims{}, refuse(TokenMalformed, err)
	}
	c.KeyID = u.KID
	return c, nil
}

func (t *TenantKeys) issuer(name string) *Issuer {
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
	// SHA-256 reads its input and keeps no reference to it; the conversion spares a copy of up to 16 KiB.
	sum := sha256.Sum256(unsafe.Slice(unsafe.StringData(token), len(token))) //nolint:gosec // read only, see above
	var space [512]byte
	b := append(space[:0], sum[:]...)
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
