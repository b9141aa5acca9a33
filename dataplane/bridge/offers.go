package bridge

import (
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// Offers is what a client can do for a server that asks it something.
type Offers uint8

// The things that servers may ask for.
const (
	Form Offers = 1 << iota
	URL
	Sampling
	SamplingTools
	SamplingContext
	Roots
)

const offerLetters = "fustcr"

// ParseOffers reads the raw capabilities of a client, of either era.
func ParseOffers(capabilities []byte) Offers {
	var o Offers
	has := func(object []byte, key string) ([]byte, bool) {
		at := mcp.Member(object, key)
		if !at.Present() || object[at.Start] != '{' {
			return nil, false
		}
		return object[at.Start:at.End], true
	}
	if e, ok := has(capabilities, "elicitation"); ok {
		_, form := has(e, "form")
		_, url := has(e, "url")
		if form || !url {
			o |= Form
		}
		if url {
			o |= URL
		}
	}
	if s, ok := has(capabilities, "sampling"); ok {
		o |= Sampling
		if _, ok := has(s, "tools"); ok {
			o |= SamplingTools
		}
		if _, ok := has(s, "context"); ok {
			o |= SamplingContext
		}
	}
	if _, ok := has(capabilities, "roots"); ok {
		o |= Roots
	}
	return o
}

// Capabilities is the raw capabilities object that says the same. Changes of the roots are not among it: they are asked for
// anew each time.
func (o Offers) Capabilities() []byte {
	out := []byte{'{'}
	add := func(key string, parts ...string) {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, `"`+key+`":{`+strings.Join(parts, ",")+`}`...)
	}
	pick := func(of Offers, key string) []string {
		if o&of == 0 {
			return nil
		}
		return []string{`"` + key + `":{}`}
	}
	if o&(Form|URL) != 0 {
		add("elicitation", append(pick(Form, "form"), pick(URL, "url")...)...)
	}
	if o&Sampling != 0 {
		add("sampling", append(pick(SamplingTools, "tools"), pick(SamplingContext, "context")...)...)
	}
	if o&Roots != 0 {
		add("roots")
	}
	return append(out, '}')
}

// Answers reports whether the client said that it can answer this request of a server; params is raw.
func (o Offers) Answers(method string, params []byte) bool {
	switch method {
	case mcp.MethodElicit:
		p := mcp.Message{Body: params}
		if mode, _ := p.Text(mcp.Member(params, "mode")); mode == "url" {
			return o&URL != 0
		}
		return o&Form != 0
	case mcp.MethodSample:
		if mcp.Member(params, "tools").Present() && o&SamplingTools == 0 {
			return false
		}
		return o&Sampling != 0
	case mcp.MethodRoots:
		return o&Roots != 0
	}
	return false
}

// String is a letter for each; ParseWord is the inverse.
func (o Offers) String() string {
	var b strings.Builder
	for i := range len(offerLetters) {
		if o&(1<<i) != 0 {
			b.WriteByte(offerLetters[i])
		}
	}
	return b.String()
}

// ParseWord reads what String wrote; letters that it does not know offer nothing.
func ParseWord(s string) Offers {
	var o Offers
	for i := range len(s) {
		if at := strings.IndexByte(offerLetters, s[i]); at >= 0 {
			o |= 1 << at
		}
	}
	return o
}
