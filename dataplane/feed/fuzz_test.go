package feed_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// FuzzEvent lets a control plane say anything to a node that serves generation 5. The seeds are signed for what the node has
// already, so whatever would change something was made up.
func FuzzEvent(f *testing.F) {
	a, n, good := serving(f)
	_, forged := a.generation(f, 6, a.stranger, nil)
	for _, ev := range []*cellv1.WatchResponse{
		update(good), update(forged), heartbeat(a.heartbeat(f, good, time.UnixMilli(1))), killed(a.killOf(f, "k1", "alice", a.stranger)),
		{},
	} {
		b, err := proto.Marshal(ev)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ev := &cellv1.WatchResponse{}
		if proto.Unmarshal(b, ev) != nil {
			return
		}
		n.feed.Handle(t.Context(), ev)
		n.unharmed(t)
	})
}
