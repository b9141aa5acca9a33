package pep

import (
	"bytes"
	"slices"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// redacted stands where a credential was; it fits into any JSON string.
const redacted = "[secret]"

// leakBlocked is the record's word for that.
const leakBlocked = "leak_blocked"

// withoutSecrets takes what was injected out of an upstream's words, and reports whether it was there. A server that echoes
// the headers that it got, in an error perhaps, does not hand the caller its credential.
func (x *exchange) withoutSecrets(b []byte) ([]byte, bool) {
	leaked := false
	for _, s := range x.leaks {
		if bytes.Contains(b, s) {
			b, leaked = bytes.ReplaceAll(b, s, []byte(redacted)), true
		}
	}
	if leaked {
		x.rec.Detail = leakBlocked
		x.p.log.Error("a server answered with the credential that it was sent: it was taken out", "server", x.rec.GetServer(), "request_id", x.rec.GetId())
	}
	return b, leaked
}

// mustNotLeak adds values to those that must not come back, each once: a stream opens its sources again and again.
func (x *exchange) mustNotLeak(leaks [][]byte) {
	for _, l := range leaks {
		if !slices.ContainsFunc(x.leaks, func(known []byte) bool { return bytes.Equal(known, l) }) {
			x.leaks = append(x.leaks, l)
		}
	}
}

// cleanEvent is an event without what was injected and what nobody would see.
func (x *exchange) cleanEvent(ev mcp.Event) mcp.Event {
	if raw, leaked := x.withoutSecrets(ev.Raw); leaked {
		ev.Raw = raw
		ev.Data, _ = x.withoutSecrets(ev.Data)
	}
	if len(ev.Data) > 0 {
		return x.cleanText(ev)
	}
	return ev
}
