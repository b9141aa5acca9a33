package contexts

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
)

// Claims is what an access token says of itself. It is read for addressing and for words only: the servers verify.
type Claims struct {
	Subject string `json:"sub"`
	Tenant  string `json:"tenant"`
	Expires int64  `json:"exp"`
}

// ReadToken reads a token without verifying it; one of another form says nothing.
func ReadToken(token string) Claims {
	var c Claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return Claims{}
	}
	return c
}

// End is when the token ends; false when it does not say.
func (c Claims) End() (time.Time, bool) { return time.Unix(c.Expires, 0), c.Expires > 0 }

// HostFor is the host name that leads the token's holder to their own tenant on a cell that is reached by address; "" for
// the address itself.
func (c *Context) HostFor(token string) string {
	tenant := c.Tenant
	if t := ReadToken(token).Tenant; t != "" {
		tenant = t
	}
	return c.Hosts[tenant]
}
