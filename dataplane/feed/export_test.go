package feed

import (
	"context"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Handle is what happens to each event of the stream.
func (f *Feed) Handle(ctx context.Context, ev *cellv1.WatchResponse) { f.handle(ctx, ev) }

// Coalesced is what is left to be said of answers that nobody has taken.
func Coalesced(list []*cellv1.AcknowledgeRequest) []*cellv1.AcknowledgeRequest {
	a := newAnswers()
	for _, r := range list {
		a.add(r, true)
	}
	var out []*cellv1.AcknowledgeRequest
	for r := a.next(); r != nil; r = a.next() {
		out = append(out, r)
	}
	return out
}
