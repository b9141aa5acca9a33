package load

import (
	"context"
	"fmt"
	"time"
)

// One makes one call apart from the load, of the tool that reads or of the one with effects, and has the answer judged. It returns the
// reason of a refusal, "" when the call was allowed, and "no answer" when there was none.
func (l *Load) One(node string, p Person, effects bool) (reason string, took time.Duration) {
	r := request{person: p, method: "tools/call", tool: l.cfg.Tools.Read, id: l.id(), call: true, effects: effects}
	if effects {
		r.tool = l.cfg.Tools.Write
	}
	begin := time.Now()
	got, err := l.send(r, node)
	got.from, got.until = begin, time.Now()
	if l.judged(r, got, err) {
		return "", got.until.Sub(begin)
	}
	if err != nil {
		return "no answer: " + inWords(err), got.until.Sub(begin)
	}
	return got.reason(), got.until.Sub(begin)
}

// judged has one answer judged and reports whether a call was allowed.
func (l *Load) judged(r request, got reply, err error) bool {
	s, _ := l.verdict(r, got, err)
	return s.Class == OK && got.msg.Result != nil && !got.msg.Result.IsError
}

// Beside makes one call of another server, apart from the load, which nobody judges. It returns the reason of a refusal, "" when the call
// was allowed.
func (l *Load) Beside(ctx context.Context, node string, p Person, tool string) (reason string) {
	got, err := l.sendBody(ctx, request{person: p, method: "tools/call", tool: tool}, node,
		fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":%q,"arguments":{"message":"drill"},%s}}`, tool, meta))
	switch {
	case err != nil:
		return "no answer: " + inWords(err)
	case got.msg.Result != nil && !got.msg.Result.IsError:
		return ""
	}
	return got.reason()
}
