package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// Question is one call as a gateway has it when the token was checked and the names were looked up.
type Question struct {
	// Request is shared with other questions.
	Request   *authz.Request
	Tenant    uint32
	Principal index.PrincipalID
	Server    index.ServerID
	Item      index.ItemID
}

// Decide answers by ids, as for a principal that was never seen before.
func (q *Question) Decide(x []*index.Index) authz.Decision {
	v := x[q.Tenant].View(q.Principal, q.Server)
	return decide(&v, q)
}

func decide(v *index.View, q *Question) authz.Decision { return authz.Decide(v, q.Item, q.Request) }

// Questions draws calls at random over all principals of all tenants. They go to servers of which the principal sees
// something, because clients call what they were shown, and three of four to a tool that is shown.
func Questions(x []*index.Index, n int, rng *rand.Rand) []Question {
	requests := Requests(rng)
	out := make([]Question, n)
	for i := range out {
		q := &out[i]
		q.Tenant = uint32(rng.IntN(len(x)))
		of := x[q.Tenant]
		q.Request = &requests[rng.IntN(len(requests))]
		q.Principal = index.PrincipalID(rng.IntN(of.Principals()))
		var shown uint64
		for range 50 {
			q.Server = index.ServerID(rng.IntN(of.Servers()))
			v := of.View(q.Principal, q.Server)
			if shown = authz.VisibleMask(&v, 0, q.Request); shown != 0 {
				break
			}
		}
		q.Item = index.ItemID(rng.IntN(of.ItemCount(q.Server)))
		for shown != 0 && i%4 != 0 && shown>>q.Item&1 == 0 {
			q.Item = index.ItemID(rng.IntN(of.ItemCount(q.Server)))
		}
	}
	return out
}

// Requests are the calls' contents: arguments of about a hundred bytes, and where the caller is, which is not always known.
func Requests(rng *rand.Rand) []authz.Request {
	out := make([]authz.Request, 256)
	for i := range out {
		out[i] = authz.Request{
			NowMS: Now.UnixMilli(), IP: address(rng), Region: "eu",
			Args: fmt.Appendf(nil, `{"amount":%d,"dry_run":%t,"note":"closing entry %d of the quarter","region":%q}`,
				rng.IntN(500), rng.IntN(2) == 0, i, regions()[rng.IntN(len(regions()))]),
		}
	}
	return out
}

func address(rng *rand.Rand) netip.Addr {
	switch rng.IntN(8) {
	case 0:
		return netip.Addr{}
	case 1, 2:
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, byte(16 * rng.IntN(3)), 15: byte(rng.IntN(256))})
	case 3:
		return netip.AddrFrom4([4]byte{192, 168, byte(6 + rng.IntN(2)), byte(rng.IntN(256))})
	}
	return netip.AddrFrom4([4]byte{10, byte(10 * rng.IntN(3)), byte(rng.IntN(256)), byte(rng.IntN(256))})
}
