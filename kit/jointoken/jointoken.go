// Package jointoken is the text that makes a machine a node: whom to ask, by what to know them, and the secret to show. A
// machine that has it trusts nobody on first use: the hashes of the authorities and of the root keys are in it.
package jointoken

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/secret"
)

const (
	// prefix tells people, and scanners of leaked secrets, what it is.
	prefix = "mcpvault-join-1."
	// SecretSize is in bytes.
	SecretSize = 32
	// maxText bounds a token, in bytes.
	maxText = 4 << 10
	// maxAuthorities bounds the authorities that are believed at the same time.
	maxAuthorities = 8
	// Lifetime is how long a token can be used.
	Lifetime = 10 * time.Minute
)

// Token is what the text says.
type Token struct {
	Secret secret.Value
	// ControlPlane is the cell listener, https://host:port.
	ControlPlane string
	TrustDomain  string
	Cell, Node   string
	// Authorities are the SHA-256 of the certificates of those that sign SVIDs of nodes and control planes.
	Authorities [][sha256.Size]byte
	// Roots is the SHA-256 of the roots in force, a DSSE envelope.
	Roots [sha256.Size]byte
	// Expires is when the control plane takes it no more.
	Expires time.Time
}

type wire struct {
	Secret       []byte   `json:"s"`
	ControlPlane string   `json:"u"`
	TrustDomain  string   `json:"d"`
	Cell         string   `json:"c"`
	Node         string   `json:"n"`
	Authorities  [][]byte `json:"a"`
	Roots        []byte   `json:"r"`
	Expires      int64    `json:"e"`
}

// NewSecret draws the secret of a token.
func NewSecret() secret.Value {
	b := make([]byte, SecretSize)
	_, _ = rand.Read(b) // It does not fail.
	return secret.New(b)
}

// Text is the token as a person passes it on. It is a secret.
func (t Token) Text() (string, error) {
	w := wire{
		Secret: t.Secret.Reveal(), ControlPlane: t.ControlPlane, TrustDomain: t.TrustDomain, Cell: t.Cell, Node: t.Node,
		Roots: t.Roots[:], Expires: t.Expires.Unix(),
	}
	for _, a := range t.Authorities {
		w.Authorities = append(w.Authorities, a[:])
	}
	raw, err := json.Marshal(w) //nolint:gosec // the token is the one place where its secret stands
	if err != nil {
		return "", fmt.Errorf("encode join token: %w", err)
	}
	text := prefix + base64.RawURLEncoding.EncodeToString(raw)
	if _, err := Parse(text); err != nil {
		return "", err
	}
	return text, nil
}

var (
	namePattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	domainPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,252}$`)
)

// Parse reads a token. The error is a problem, and never shows the text.
func Parse(text string) (Token, error) {
	bad := func(what string) (Token, error) {
		return Token{}, problem.New(problem.Invalid, "the join token is not whole: "+what, "copy all of what `mcpvault cell token create` printed, or make another")
	}
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, prefix)
	if !ok || len(text) > maxText {
		return bad("it does not begin with " + prefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil {
		return bad("it is cut off")
	}
	var w wire
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return bad("it is damaged")
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("something follows it")
	}
	u, err := url.Parse(w.ControlPlane)
	switch {
	case len(w.Secret) != SecretSize:
		return bad("it has no secret")
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "":
		return bad("it names no control plane")
	case !namePattern.MatchString(w.Cell) || !namePattern.MatchString(w.Node) || !domainPattern.MatchString(w.TrustDomain):
		return bad("it names no node")
	case len(w.Authorities) == 0 || len(w.Authorities) > maxAuthorities || len(w.Roots) != sha256.Size:
		return bad("it has no hashes")
	}
	t := Token{
		Secret: secret.New(w.Secret), ControlPlane: w.ControlPlane, TrustDomain: w.TrustDomain, Cell: w.Cell, Node: w.Node,
		Roots: [sha256.Size]byte(w.Roots), Expires: time.Unix(w.Expires, 0).UTC(),
	}
	for _, a := range w.Authorities {
		if len(a) != sha256.Size {
			return bad("it has no hashes")
		}
		t.Authorities = append(t.Authorities, [sha256.Size]byte(a))
	}
	return t, nil
}
