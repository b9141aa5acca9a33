// Package guard judges what MCP servers say: characters that people do not see and programs obey, and questions that are
// not a server's to ask. It takes bytes and rules and says what it found; what becomes of an answer is its caller's to do.
//
// It promises one pass over each answer, and that an answer in which it finds nothing is left as the bytes that came.
package guard

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// Policy is what is done about a finding.
type Policy uint8

// The policies. Block is the one that lets least through.
const (
	Strip Policy = iota
	Pass
	Block
)

// Rules are what a tenant decided, ready to be asked; never changed once in use.
type Rules struct {
	// Results is done about hidden text in what servers say.
	Results Policy
	// RiskyQuestions lets servers ask for credentials and lead clients to other origins.
	RiskyQuestions bool
	// CheckArguments holds calls to the approved input schemas, ServeChanged serves tools that changed since approval.
	CheckArguments, ServeChanged bool

	origins                     []string
	noElicit, noSample, noRoots bool
}

// ParseRules reads what the snapshot says; nil has the defaults. What is not understood is an error: a node that left it
// out would be open without a word.
func ParseRules(g *snapshotv1.Guards) (*Rules, error) {
	r := &Rules{CheckArguments: g.GetCheckArguments(), origins: slices.Clone(g.GetOrigins())}
	switch g.GetResults() {
	case "", "strip":
	case "pass":
		r.Results = Pass
	case "block":
		r.Results = Block
	default:
		return nil, fmt.Errorf("nothing is known of %q for hidden text: this node is too old for it", g.GetResults())
	}
	switch g.GetQuestions() {
	case "", "block":
	case "pass":
		r.RiskyQuestions = true
	default:
		return nil, fmt.Errorf("nothing is known of %q for questions: this node is too old for it", g.GetQuestions())
	}
	switch g.GetChangedTools() {
	case "", "refuse":
	case "serve":
		r.ServeChanged = true
	default:
		return nil, fmt.Errorf("nothing is known of %q for changed tools: this node is too old for it", g.GetChangedTools())
	}
	for _, word := range g.GetForbidden() {
		switch word {
		case "elicitation":
			r.noElicit = true
		case "sampling":
			r.noSample = true
		case "roots":
			r.noRoots = true
		default:
			return nil, fmt.Errorf("nothing is known of a question for %q: this node is too old for it", word)
		}
	}
	for _, origin := range r.origins {
		if u, err := url.Parse(origin); err != nil || originOf(u) != strings.ToLower(origin) {
			return nil, fmt.Errorf("%q is no origin", origin)
		}
	}
	return r, nil
}

// originOf is scheme://host[:port] in lower case, without the scheme's own port (RFC 6454, 4); "" for a URL that has none.
func originOf(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	if scheme != "https" && scheme != "http" || u.Hostname() == "" {
		return ""
	}
	switch {
	case scheme == "https":
		host = strings.TrimSuffix(host, ":443")
	case scheme == "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host
}
