// Package inject adds to a call what its destination demands: the destination's own credential, as a header. The caller never
// has it, and the policy never carries it.
//
// The credentials are in files of the node, and the node's own configuration says which server gets which one and at which
// origin. A control plane that was taken over can send a server elsewhere, but not the credential with it.
package inject

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/kit/secret"
)

// Rule is one credential of one server.
type Rule struct {
	// Name is how kills and records call the credential.
	Name string `yaml:"name"`
	// Tenant and Server say whose calls get it, by name.
	Tenant string `yaml:"tenant"`
	Server string `yaml:"server"`
	// Origin is the only scheme, host and port that it is sent to: https://pay.example.com.
	Origin string `yaml:"origin"`
	// Header is the field, Prefix what stands before the value: Authorization and "Bearer ".
	Header string `yaml:"header"`
	Prefix string `yaml:"prefix"`
	// File holds the value; line breaks at its end do not count. It is read again when it changes.
	File string `yaml:"file"`
}

// The bounds of a credential, and how long a value is used before its file is looked at again.
const (
	maxValue  = 16 << 10
	lookEvery = time.Second
)

// ErrDestination says that a server is no longer where its credential may go.
var ErrDestination = errors.New("the server's address is not the one that its credential is for")

// Check returns everything that is wrong with the rules.
func Check(rules []Rule) []string {
	var p []string
	seen := map[string]bool{}
	for i, r := range rules {
		at := fmt.Sprintf("inject[%d]: ", i)
		if r.Name == "" || r.Tenant == "" || r.Server == "" || r.File == "" {
			p = append(p, at+"name, tenant, server and file are all required")
		}
		if _, err := originOf(r.Origin); err != nil || strings.Count(r.Origin, "/") != 2 {
			p = append(p, fmt.Sprintf("%sorigin %q is not scheme://host:port", at, r.Origin))
		}
		if !fieldName(r.Header) {
			p = append(p, fmt.Sprintf("%sheader %q may not be set", at, r.Header))
		}
		if !fieldValue([]byte(r.Prefix)) {
			p = append(p, at+"prefix holds what no header may")
		}
		slot := r.Tenant + "\x00" + r.Server + "\x00" + textproto.CanonicalMIMEHeaderKey(r.Header)
		if seen[slot] {
			p = append(p, fmt.Sprintf("%sserver %s of %s has two values for %s", at, r.Server, r.Tenant, r.Header))
		}
		seen[slot] = true
	}
	return p
}

// fieldName reports whether a header may be a credential's: not one that the gateway, the protocol or HTTP itself decides by.
func fieldName(h string) bool {
	for i := range len(h) {
		if c := h[i]; c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	h = strings.ToLower(h)
	switch h {
	case "", "host", "content-length", "content-type", "transfer-encoding", "connection", "accept", "te", "upgrade", "trailer", "expect":
		return false
	}
	return !strings.HasPrefix(h, "mcp-")
}

// fieldValue reports whether b can stand in a header (RFC 9110, 5.5).
func fieldValue(b []byte) bool {
	return !bytes.ContainsFunc(b, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f })
}

func originOf(raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", fmt.Errorf("%q is no address of HTTP", raw)
	}
	host, port := strings.ToLower(u.Hostname()), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + host + ":" + port, nil
}

// Files injects credentials out of files. It is safe for concurrent use.
type Files struct {
	rules map[[2]string]*server
	now   func() time.Time
}

// server is what one server gets.
type server struct {
	names []string
	creds []*credential
}

type credential struct {
	rule   Rule
	origin string

	mu     sync.RWMutex
	value  []string  // the header's
	leaks  [][]byte  // what must not come back; both are guarded by mu, replaced and never written to
	looked time.Time // when the file was looked at last
	stamp  time.Time // its modification time then
}

// New reads all credentials, so that a missing one is known at the start. The rules must have passed Check.
func New(rules []Rule, now func() time.Time) (*Files, error) {
	f := &Files{rules: map[[2]string]*server{}, now: now}
	for _, r := range rules {
		origin, err := originOf(r.Origin)
		if err != nil {
			return nil, err
		}
		c := &credential{rule: r, origin: origin}
		c.rule.Header = textproto.CanonicalMIMEHeaderKey(r.Header)
		if _, _, err := c.current(now()); err != nil {
			return nil, err
		}
		key := [2]string{r.Tenant, r.Server}
		if f.rules[key] == nil {
			f.rules[key] = &server{}
		}
		s := f.rules[key]
		s.names, s.creds = append(s.names, r.Name), append(s.creds, c)
	}
	return f, nil
}

// Secrets names what Inject would send to the server.
func (f *Files) Secrets(t *pdp.Tenant, s *pdp.Server) []string {
	if r := f.rules[[2]string{t.Name, s.Name}]; r != nil {
		return r.names
	}
	return nil
}

// Inject adds the server's credentials to set and returns their values in each spelling, which must not come back to a
// caller and are not to be written to. It fails when the server is not where they may go, or when one cannot be read.
func (f *Files) Inject(_ context.Context, t *pdp.Tenant, s *pdp.Server, set http.Header) ([][]byte, error) {
	r := f.rules[[2]string{t.Name, s.Name}]
	if r == nil {
		return nil, nil
	}
	var all [][]byte
	for _, c := range r.creds {
		if !c.goesTo(s.URL) {
			return nil, ErrDestination
		}
		value, leaks, err := c.current(f.now())
		if err != nil {
			return nil, err
		}
		set[c.rule.Header] = value
		if all == nil {
			all = leaks[:len(leaks):len(leaks)]
		} else {
			all = append(all, leaks...)
		}
	}
	return all, nil
}

// goesTo compares without taking the address apart when it begins as the rule spells it.
func (c *credential) goesTo(address string) bool {
	if rest, same := strings.CutPrefix(address, c.rule.Origin); same && (rest == "" || rest[0] == '/') {
		return true
	}
	origin, err := originOf(address)
	return err == nil && origin == c.origin
}

// current is the header's value. A file that cannot be read any more leaves the last value in use: a rotation replaces files.
func (c *credential) current(now time.Time) (value []string, leaks [][]byte, err error) {
	c.mu.RLock()
	value, leaks = c.value, c.leaks
	fresh := now.Sub(c.looked) < lookEvery && !now.Before(c.looked)
	c.mu.RUnlock()
	if fresh && value != nil {
		return value, leaks, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looked = now
	var st os.FileInfo
	st, err = os.Stat(c.rule.File)
	if err == nil && c.value != nil && st.ModTime().Equal(c.stamp) {
		return c.value, c.leaks, nil
	}
	var v secret.Value
	if err == nil {
		v, err = read(c.rule.File)
	}
	if err != nil {
		if c.value != nil {
			return c.value, c.leaks, nil
		}
		return nil, nil, fmt.Errorf("credential %s: %w", c.rule.Name, err)
	}
	c.value, c.leaks, c.stamp = []string{c.rule.Prefix + string(v.Reveal())}, spellings(v.Reveal()), st.ModTime()
	return c.value, c.leaks, nil
}

// minLeak is the shortest value that is looked for in answers: a shorter one is in them by chance.
const minLeak = 6

// spellings are a value as it is and as JSON writes it.
func spellings(v []byte) [][]byte {
	if len(v) < minLeak {
		return nil
	}
	all := [][]byte{bytes.Clone(v)}
	if quoted := mcp.AppendString(nil, string(v)); len(quoted) != len(v)+2 {
		all = append(all, quoted[1:len(quoted)-1])
	}
	return all
}

func read(name string) (secret.Value, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return secret.Value{}, err
	}
	b = bytes.TrimRight(b, "\r\n")
	switch {
	case len(b) == 0:
		return secret.Value{}, fmt.Errorf("%s is empty", name)
	case len(b) > maxValue:
		return secret.Value{}, fmt.Errorf("%s is larger than %d bytes", name, maxValue)
	case !fieldValue(b):
		return secret.Value{}, fmt.Errorf("%s holds what no header may", name)
	}
	return secret.New(b), nil
}
