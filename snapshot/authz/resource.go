package authz

import (
	"net/url"
	"path"
	"strings"

	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// sets are the items of one page that a request stands for: a deny of any in deny denies it, an allow of any in allow
// allows it. For a tool both are its one bit.
type sets struct {
	page        int
	deny, allow uint64
}

func setOf(item index.ItemID) []sets {
	bit := uint64(1) << (item % 64)
	return []sets{{page: int(item) / 64, deny: bit, allow: bit}}
}

// resourceSets are what a URI stands for: the patterns that match it, and the rest of the server. One that is not in
// canonical form may mean something else to the server than to us, so every pattern's deny counts and no pattern's allow.
func resourceSets(v *index.View, uri string) []sets {
	x := v.Index()
	if x == nil {
		return nil
	}
	var out []sets
	add := func(item index.ItemID, deny, allow bool) {
		page, bit := int(item)/64, uint64(1)<<(item%64)
		if len(out) == 0 || out[len(out)-1].page != page {
			out = append(out, sets{page: page})
		}
		s := &out[len(out)-1]
		if deny {
			s.deny |= bit
		}
		if allow {
			s.allow |= bit
		}
	}
	if Canonical(uri) {
		for item := range x.Resources(v.Server(), uri) {
			add(item, true, true)
		}
		return out
	}
	for item, name := range x.Items(v.Server()) {
		if kind, _ := snapshot.KindOf(name); kind == snapshot.ItemResource || kind == snapshot.ItemRest {
			add(item, true, kind == snapshot.ItemRest)
		}
	}
	return out
}

// Canonical reports whether a URI is written as RFC 3986 §6.2.2 would write it, and leaves a server nothing to read
// differently: lower-case scheme and host, no dot segments, no empty ones, no escapes but of what needs one, and none of
// dots, slashes, backslashes and percent signs, which mean something once they are decoded.
func Canonical(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme == "" || u.String() != uri || u.User != nil || u.Host != strings.ToLower(u.Host) {
		return false
	}
	for i := range len(uri) {
		if c := uri[i]; c <= ' ' || c == '\\' || c >= 0x7F {
			return false
		}
		if uri[i] == '%' && !escapeNeeded(uri[i+1:]) {
			return false
		}
	}
	if p := u.EscapedPath(); p != "" && p[0] == '/' && p != "/" {
		return path.Clean(p) == strings.TrimSuffix(p, "/")
	}
	for _, seg := range strings.Split(u.Opaque, "/") {
		if seg == "." || seg == ".." {
			return false
		}
	}
	return true
}

// escapeNeeded looks at the two digits after a percent sign.
func escapeNeeded(s string) bool {
	r, ok := hexByte(s)
	switch {
	case !ok || s[:2] != strings.ToUpper(s[:2]):
		return false
	case r < ' ' || r == '/' || r == '\\' || r == '%' || r == 0x7F:
		return false
	case r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.IndexByte("-._~", r) >= 0:
		return false
	}
	return true
}

func hexByte(s string) (byte, bool) {
	if len(s) < 2 {
		return 0, false
	}
	r, ok := hex4([]byte("00"+s[:2]), 0)
	return byte(r), ok
}

// DecideResource decides a request for a resource of the view's server, by its URI.
func DecideResource(v *index.View, uri string, r *Request) Decision {
	if v.Disabled() || v.Index() == nil {
		return Decision{Reason: Disabled}
	}
	room := make([]arg, maxRead)
	e := evaluator{req: r, x: v.Index(), who: v.Principal(), args: args{room: room}}
	return e.decideSets(v, resourceSets(v, uri))
}

// VisibleResource reports whether a resource belongs in a list.
func VisibleResource(v *index.View, uri string, r *Request) bool {
	seen := false
	for _, s := range resourceSets(v, uri) {
		shown, hidden := listed(v, s.page, r)
		if hidden&s.deny != 0 {
			return false
		}
		seen = seen || shown&s.allow != 0
	}
	return seen
}

// decideSets decides a request that several items stand for, by the rules of decide.
func (e *evaluator) decideSets(v *index.View, all []sets) Decision {
	pages := make([]index.Page, len(all))
	reached, plain := false, false
	for i, s := range all {
		pg, _ := v.Page(index.ItemID(s.page*64), &pages[i])
		pages[i] = *pg
		if pg.Deny&s.deny != 0 {
			return Decision{Reason: ExplicitDeny}
		}
		reached = reached || (pg.Allow|pg.CondAllow)&s.allow != 0
		plain = plain || pg.Allow&s.allow != 0
	}
	if !reached {
		return Decision{Reason: NoGrant}
	}
	d := Decision{Visible: true, Reason: Condition}
	for i, s := range all {
		if e.anyOf(v, &pages[i], s, true, &d) {
			return Decision{Visible: true, Reason: Condition, Program: d.Program}
		}
	}
	if d.Reason == ArgumentType {
		return d
	}
	d.Program = 0
	if plain {
		return Decision{Allow: true, Visible: true, Reason: Allowed}
	}
	for i, s := range all {
		if e.anyOf(v, &pages[i], s, false, &d) {
			return Decision{Allow: true, Visible: true, Reason: Allowed, Program: d.Program}
		}
	}
	return d
}

// anyOf is any over all conditions of a page, those of denies or those of allows.
func (e *evaluator) anyOf(v *index.View, pg *index.Page, s sets, denies bool, d *Decision) bool {
	item := index.ItemID(s.page * 64)
	for k := range v.Ranges(pg) {
		rng := v.Range(pg, item, k)
		if denies && e.any(rng.First, uint32(rng.Deny), s.deny, d) ||
			!denies && e.any(rng.First+uint32(rng.Deny), uint32(rng.Allow), s.allow, d) {
			return true
		}
	}
	return false
}
