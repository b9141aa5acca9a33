package compile

import (
	"cmp"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// rateLimits takes the subjects of limits apart.
func rateLimits(l controlplane.RateLimits) (rates []*snapshotv1.RateLimit, maxCalls uint32) {
	for subject, r := range l.Rates {
		out := &snapshotv1.RateLimit{Requests: r.Requests, PerMs: r.Per.Milliseconds(), Burst: r.Burst}
		out.Scope, out.Name, _ = strings.Cut(subject, "/")
		if out.GetScope() == "tool" {
			out.Name, out.Item, _ = strings.Cut(out.GetName(), "/")
		}
		rates = append(rates, out)
	}
	slices.SortFunc(rates, func(a, b *snapshotv1.RateLimit) int {
		return cmp.Or(cmp.Compare(a.GetScope(), b.GetScope()), cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetItem(), b.GetItem()))
	})
	return rates, uint32(l.MaxCalls)
}
