package authz

import (
	"net/netip"

	"github.com/mcpvault/mcpvault/bench/measure"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// list filters all tools of a server for principals who may see every one of them and whose conditions are looked at all
// the same.
func (r *run) list() {
	x := r.indexes[0]
	s, _ := x.Server(common)
	req := &authz.Request{NowMS: Now.UnixMilli(), IP: netip.AddrFrom4([4]byte{10, 20, 1, 1}), Region: "eu"}
	var views []index.View
	for p := range x.Principals() {
		v := x.View(index.PrincipalID(p), s)
		if len(views) < 256 && show(&v, req) >= tools && conditions(&v) > 0 {
			views = append(views, v)
		}
	}
	if len(views) == 0 {
		return
	}
	seen := 0
	r.figures.List50, r.figures.ListAllocs = measure.Mean(r.Rounds, r.Calls, func(i int) { seen += show(&views[i%len(views)], req) })
	r.figures.Listed = float64(seen) / float64(r.Rounds*r.Calls)
}

func show(v *index.View, req *authz.Request) (n int) {
	for range authz.VisibleItems(v, req) {
		n++
	}
	return n
}

// conditions counts the conditions that a view has on its first items.
func conditions(v *index.View) (n int) {
	var scratch index.Page
	pg, _ := v.Page(0, &scratch)
	for k := range v.Ranges(pg) {
		rng := v.Range(pg, 0, k)
		n += int(rng.Deny) + int(rng.Allow)
	}
	return n
}
