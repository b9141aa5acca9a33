package peers

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// ShareBudgets tells one peer what this node gave it, and returns its answer.
func (s *Set) ShareBudgets(ctx context.Context, node string, out []limit.Entry) ([]limit.Entry, error) {
	c, err := s.client(node)
	if err != nil {
		return nil, err
	}
	r, err := c.ShareBudgets(ctx, &cellv1.ShareBudgetsRequest{Shares: toWire(out)})
	if err != nil {
		return nil, err
	}
	return fromWire(r.GetShares()), nil
}

// ShareBudgets implements cellv1connect.PeerServiceHandler.
func (s *service) ShareBudgets(ctx context.Context, r *cellv1.ShareBudgetsRequest) (*cellv1.ShareBudgetsResponse, error) {
	peer, ok := ctx.Value(peerKey{}).(string)
	if !ok {
		return nil, connect.NewError(connect.CodeUnauthenticated, "a node of this cell is needed")
	}
	if len(r.GetShares()) > limit.EntriesPerMessage {
		return nil, connect.NewError(connect.CodeInvalidArgument, "too many budgets in one message")
	}
	return &cellv1.ShareBudgetsResponse{Shares: toWire(s.node.ShareBudgets(peer, fromWire(r.GetShares())))}, nil
}

type peerKey struct{}

// named tells the handlers behind it which node calls, as its SVID says.
func named(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS != nil {
			if id, err := svid.PeerID(*r.TLS); err == nil {
				if _, node, ok := svid.ParseNode(id); ok {
					r = r.WithContext(context.WithValue(r.Context(), peerKey{}, node))
				}
			}
		}
		h.ServeHTTP(w, r)
	})
}

func toWire(entries []limit.Entry) []*cellv1.BudgetShare {
	out := make([]*cellv1.BudgetShare, 0, len(entries))
	for _, e := range entries {
		out = append(out, &cellv1.BudgetShare{
			TenantId: e.Key.Tenant, Scope: e.Key.Scope.String(), Name: e.Key.Name, Item: e.Key.Item,
			Born: e.Born, PeerBorn: e.PeerBorn, Gave: e.Gave, Demand: e.Demand, Parts: e.Parts,
			Saved: e.Saved, Requests: e.Rate.Requests, PerMs: e.Rate.Per.Milliseconds(), Burst: e.Rate.Burst,
		})
	}
	return out
}

// fromWire leaves out what a newer peer says of scopes that this node does not know.
func fromWire(shares []*cellv1.BudgetShare) []limit.Entry {
	out := make([]limit.Entry, 0, len(shares))
	for _, s := range shares {
		scope, ok := limit.ParseScope(s.GetScope())
		if !ok {
			continue
		}
		out = append(out, limit.Entry{
			Key:  limit.Key{Tenant: s.GetTenantId(), Scope: scope, Name: s.GetName(), Item: s.GetItem()},
			Born: s.GetBorn(), PeerBorn: s.GetPeerBorn(), Gave: s.GetGave(), Demand: s.GetDemand(), Parts: s.GetParts(),
			Saved: s.GetSaved(), Rate: rateOf(s),
		})
	}
	return out
}

// rateOf is no valid rate when the peer does not say one, or none that could be.
func rateOf(s *cellv1.BudgetShare) limit.Rate {
	if s.GetPerMs() < 0 || s.GetPerMs() > limit.MaxPer.Milliseconds() {
		return limit.Rate{}
	}
	return limit.Rate{Requests: s.GetRequests(), Per: time.Duration(s.GetPerMs()) * time.Millisecond, Burst: s.GetBurst()}
}
