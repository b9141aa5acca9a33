package cell

import (
	"fmt"
	"net/http"

	"github.com/mcpvault/mcpvault/kit/svid"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// killed reports whether a node of this cell was killed: whoever holds its key may be somebody else.
func (n *Node) killed(node string) bool {
	return n.pdp != nil && n.pdp.Current().Killed(snapshotv1.KillKind_KILL_KIND_NODE, "", n.cfg.Cell+"/"+node)
}

// admit keeps nodes that were killed out of the log; who is a member, the log knows by itself.
func (n *Node) admit(node string) error {
	if n.killed(node) {
		return fmt.Errorf("node %q was killed", node)
	}
	return nil
}

// killedProblem is said by a node that was killed itself. It serves nobody: its disk and its key are not believed any more.
func (n *Node) killedProblem() error {
	if n.killed(n.cfg.Node) {
		return fmt.Errorf("this node was killed by an administrator and serves nobody: `mcpvault kill list` says why; enrol the machine under a new name")
	}
	return nil
}

// whenAlive keeps callers out of a node that was killed.
func (n *Node) whenAlive(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := n.killedProblem(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// fromAlive refuses the requests of peers that were killed or removed, on connections from before too.
func (n *Node) fromAlive(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			id, err := svid.PeerID(*r.TLS)
			if _, node, ok := svid.ParseNode(id); err != nil || !ok || n.killed(node) || n.left(node) {
				http.Error(w, "this node was killed or removed", http.StatusForbidden)
				return
			}
		}
		h.ServeHTTP(w, r)
	})
}

// toAlive asks nothing of a peer that was killed.
type toAlive struct {
	n    *Node
	node string
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t toAlive) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.n.admit(t.node); err != nil {
		return nil, err
	}
	return t.next.RoundTrip(r)
}
