package rehearse

import (
	"context"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

// SetFault breaks what the words say, as after `mcpvault dev fault set`: "cut local/n1 local/n2"; only are the parts of a disk. It
// returns when it is broken.
func (s *Site) SetFault(ctx context.Context, words string, only ...string) error {
	f, err := devmode.ParseFault(strings.Fields(words), only, false)
	if err != nil {
		return err
	}
	return devmode.SetFault(ctx, s.dir, f)
}

// ClearFaults mends all that SetFault has broken.
func (s *Site) ClearFaults(ctx context.Context) error { return devmode.ClearFault(ctx, s.dir, nil) }

// breakable reports whether the dev lets things be broken.
func (s *Site) breakable(ctx context.Context) bool {
	_, err := devmode.Faults(ctx, s.dir)
	return err == nil
}

// Ready reports whether a node says that it is ready.
func (s *Site) Ready(ctx context.Context, n Node) bool { return s.Page(ctx, n, "/readyz") }

// ShortToken makes a token of the first person's that ends after a time.
func (r *Run) ShortToken(ctx context.Context, ttl time.Duration) (load.Person, error) {
	p := r.People[0]
	token, err := r.Site.Admin.Tokens.CreateToken(ctx, &adminv1.CreateTokenRequest{Tenant: r.Site.Tenant, Principal: p.Name, Ttl: durationpb.New(ttl)})
	if err != nil {
		return p, admin.Problem(err, r.Site.Admin.URL)
	}
	p.Token = token.GetSecret()
	return p, nil
}

// Accepts reports whether a node takes a person's token.
func (r *Run) Accepts(n Node, p load.Person) bool { return r.load.List(n.MCP+"/"+r.Server, p) }

// Read and Write make one call of a node, of a tool that reads or of one with effects, which the judge holds as it does the load's. They
// return the reason of a refusal, "" when the call was allowed.
func (r *Run) Read(n Node) (reason string, took time.Duration) {
	return r.load.One(n.MCP+"/"+r.Server, r.People[0], false)
}

// Write is Read of a tool with effects.
func (r *Run) Write(n Node) (reason string, took time.Duration) {
	return r.load.One(n.MCP+"/"+r.Server, r.People[0], true)
}

// Window is a time between two moments.
type Window struct{ From, Until time.Time }

// P99 is the 99th percentile of what the load's requests took that began within the windows and were answered rightly.
func (r *Run) P99(windows []Window) time.Duration {
	var took []time.Duration
	for _, s := range r.load.Samples() {
		for _, w := range windows {
			if s.Class == load.OK && !s.At.Before(w.From) && s.At.Before(w.Until) {
				took = append(took, s.Took)
			}
		}
	}
	return measure.Percentile(took, 99)
}

// Other makes one call of a server besides the canary, which the judge does not look at: of each node in turn. It returns the reason of a
// refusal, "" when the call was allowed.
func (r *Run) Other(ctx context.Context, server, tool string) (reason string) {
	node := r.Nodes[int(r.others.Add(1))%len(r.Nodes)]
	return r.load.Beside(ctx, node.MCP+"/"+server, r.Site.other, tool)
}

// SlowestRefusal is how long the slowest of the load's requests took that were refused by design.
func (r *Run) SlowestRefusal() (slowest time.Duration) {
	for _, s := range r.load.Samples() {
		if s.Class == load.Closed {
			slowest = max(slowest, s.Took)
		}
	}
	return slowest
}
