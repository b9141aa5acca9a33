package authn

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// maxAudiences bounds the aud array: a token for everybody is a token for nobody.
	maxAudiences = 16
	// maxName bounds what becomes a key of audit records and kills, in bytes.
	maxName = 256
	// maxActors bounds a chain of actors.
	maxActors = 8
	// maxTime is the year 10000. A time beyond it was meant in milliseconds.
	maxTime = 253402300800
)

// The values of the claim mcpvault_type.
const (
	TypeUser           = "user"
	TypeServiceAccount = "service_account"
	TypeWorkload       = "workload"
)

// claims are the ones that count here (RFC 9068, section 2.2). Names are compared with their case.
type claims struct {
	Issuer    string       `json:"iss"`
	Subject   string       `json:"sub"`
	Audience  audience     `json:"aud"`
	JTI       string       `json:"jti"`
	ClientID  string       `json:"client_id"`
	Tenant    *string      `json:"tenant"`
	Type      string       `json:"mcpvault_type"`
	Expires   *numericDate `json:"exp"`
	NotBefore *numericDate `json:"nbf"`
	IssuedAt  *numericDate `json:"iat"`
	Actor     *actor       `json:"act"`
	// Confirmation says what the caller must prove to have (RFC 7800).
	Confirmation *confirmation `json:"cnf"`
	// Scope is RFC 9068's, ScopeList what some issuers write in its place.
	Scope     string `json:"scope"`
	ScopeList scopes `json:"scp"`
	// KeyID is the header's, Name the principal's.
	KeyID string `json:"-"`
	Name  string `json:"-"`
}

// parseClaims checks the form of what a key has vouched for. What the claims say is judged by hold.
func parseClaims(raw json.RawMessage) (claims, error) {
	var c claims
	if err := jsonv2.Unmarshal(raw, &c); err != nil {
		return claims{}, err
	}
	if c.Expires == nil {
		return claims{}, errors.New("exp is missing")
	}
	for _, f := range []struct{ name, value string }{
		{"iss", c.Issuer}, {"sub", c.Subject}, {"jti", c.JTI}, {"client_id", c.ClientID},
	} {
		if !plain(f.value) {
			return claims{}, fmt.Errorf("%s is longer than %d bytes or has control characters", f.name, maxName)
		}
	}
	if c.Subject == "" {
		return claims{}, errors.New("sub is missing")
	}
	if err := c.Actor.check(); err != nil {
		return claims{}, err
	}
	if c.Scope == "" {
		c.Scope = strings.Join(c.ScopeList, " ")
	}
	switch c.Type {
	case "":
		c.Type = TypeUser
	case TypeUser, TypeServiceAccount, TypeWorkload:
	default:
		return claims{}, errors.New("mcpvault_type is unknown")
	}
	return c, nil
}

// plain texts can be shown and logged as they are.
func plain(s string) bool {
	if len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// hold judges the claims: issuer, audience and tenant against today's policy, the times against the clock, in seconds.
func (c *claims) hold(t *TenantKeys, audiences []string, now, leeway int64) error {
	issuer := t.Issuer(c.Issuer)
	switch {
	case issuer == nil:
		return refuse(TokenIssuer, nil)
	case !c.Audience.has(issuer.Audiences) && !c.Audience.has(audiences):
		return refuse(TokenAudience, nil)
	case c.Tenant != nil && *c.Tenant != t.Tenant, c.Tenant == nil && !issuer.External:
		return refuse(TokenTenant, nil)
	case c.JTI == "" && !issuer.External:
		return refuse(TokenMalformed, errors.New("jti is missing"))
	case now >= int64(*c.Expires)+leeway:
		return refuse(TokenExpired, nil)
	case c.NotBefore != nil && int64(*c.NotBefore)-leeway > now, c.IssuedAt != nil && int64(*c.IssuedAt)-leeway > now:
		return refuse(TokenNotYet, nil)
	}
	return nil
}

func (c *claims) principal() Principal {
	p := Principal{
		Name: c.Name, Issuer: c.Issuer, Subject: c.Subject, JTI: c.JTI, KeyID: c.KeyID, ClientID: c.ClientID,
		Type: c.Type, Scope: c.Scope, ExpiresAt: time.Unix(int64(*c.Expires), 0).UTC(),
	}
	if c.Actor != nil {
		p.Actor = c.Actor.Subject
		for a := c.Actor; a != nil; a = a.Before {
			p.Actors++
		}
	}
	if c.Confirmation != nil {
		p.Bound = c.Confirmation.thumbprint
	}
	return p
}

// actor is who acts for the subject (RFC 8693, 4.1). Those that it holds in turn acted before and decide nothing.
type actor struct {
	Subject string `json:"sub"`
	Issuer  string `json:"iss"`
	Before  *actor `json:"act"`
}

// check refuses a chain that is not plain: an actor that cannot be read must not pass for none.
func (a *actor) check() error {
	for n := 0; a != nil; n++ {
		switch {
		case n == maxActors:
			return fmt.Errorf("act: more than %d actors", maxActors)
		case a.Subject == "":
			return errors.New("act: sub is missing")
		case !plain(a.Subject) || !plain(a.Issuer):
			return fmt.Errorf("act: longer than %d bytes or with control characters", maxName)
		}
		a = a.Before
	}
	return nil
}

// errBinding refuses a token that is bound to what is not understood here: used without the proof it is anybody's.
var errBinding = errors.New("cnf has something else than one x5t#S256")

// confirmation is a binding to a certificate (RFC 8705, 3.1).
type confirmation struct{ thumbprint string }

// UnmarshalJSON takes one x5t#S256, the base64url of a SHA-256, and nothing else.
func (c *confirmation) UnmarshalJSON(b []byte) error {
	const name = "x5t#S256"
	var members map[string]string
	if err := jsonv2.Unmarshal(b, &members); err != nil {
		return errBinding
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(members[name])
	if len(members) != 1 || err != nil || len(raw) != sha256.Size {
		return errBinding
	}
	c.thumbprint = members[name]
	return nil
}

// audience is one text or a list of them (RFC 7519, 4.1.3).
type audience []string

// UnmarshalJSON takes both forms.
func (a *audience) UnmarshalJSON(b []byte) error {
	if jsontext.Value(b).Kind() == '"' {
		*a = make(audience, 1)
		return jsonv2.Unmarshal(b, &(*a)[0])
	}
	var list []string
	if err := jsonv2.Unmarshal(b, &list); err != nil {
		return err
	}
	if len(list) > maxAudiences {
		return fmt.Errorf("more than %d audiences", maxAudiences)
	}
	*a = list
	return nil
}

// has reports whether any of the accepted audiences is among the token's. The comparison is exact: no prefix, no case
// folding, no trailing slash (RFC 8707).
func (a audience) has(accepted []string) bool {
	for _, want := range accepted {
		if want != "" && slices.Contains(a, want) {
			return true
		}
	}
	return false
}

// numericDate is seconds since 1970; a fraction is cut off.
type numericDate int64

// UnmarshalJSON refuses what is no moment: texts, negative and endless numbers, milliseconds.
func (n *numericDate) UnmarshalJSON(b []byte) error {
	const maxDigits = 32
	if len(b) > maxDigits || jsontext.Value(b).Kind() != '0' {
		return errors.New("a time is not a number of seconds")
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || f < 0 || f >= maxTime || math.IsNaN(f) {
		return errors.New("a time is not a number of seconds between 1970 and 9999")
	}
	*n = numericDate(f)
	return nil
}
