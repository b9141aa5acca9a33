package authn

import (
	"encoding/json"
	"strings"
	"testing"
)

// Whatever an outside issuer signs, its tokens name a user of this tenant's form or nobody.
func FuzzOutsideClaims(f *testing.F) {
	for _, s := range []string{
		`{"iss":"x","sub":"a","exp":1}`, `{"sub":"a","exp":1,"email":"zoe@acme.example","email_verified":true}`,
		`{"sub":"a","exp":1,"email":"zoe@acme.example","email_verified":"true"}`, `{"sub":"spiffe://x/y","exp":1}`,
		`{"sub":"a","exp":1,"scp":["a",1]}`, `{"sub":"a","exp":1,"scope":"a b"}`, `{"sub":"a","exp":1,"email":null}`,
	} {
		f.Add([]byte(s), "email", "acme.example", "c-")
		f.Add([]byte(s), "", "", "")
	}
	f.Fuzz(func(t *testing.T, raw []byte, claim, domain, prefix string) {
		c, err := parseClaims(json.RawMessage(raw))
		if err != nil {
			return
		}
		if err := c.outside(raw, &UserClaim{Claim: claim, Domain: domain, Prefix: prefix}); err != nil {
			return
		}
		p := c.principal()
		if !userName.MatchString(p.Name) || !strings.HasPrefix(p.Name, prefix) || p.Type != TypeUser {
			t.Fatalf("%s became %+v", raw, p)
		}
	})
}
