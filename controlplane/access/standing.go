package access

import (
	"iter"

	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// standing is how a principal stands to the 64 items of a page, whatever the call: a bit an item.
type standing struct {
	// allowed by some call, by every call; denied in some, in every.
	allowMaybe, allowAlways, denyMaybe, denyAlways uint64
	rules                                          []ruling
}

// ruling is a rule, the items of the page that it reaches, and whether it takes effect in some call from now on.
type ruling struct {
	index.Rule
	mask  uint64
	maybe bool
}

// forget drops what is known of the view before.
func (r *reporter) forget() { clear(r.pages) }

// page finds the standing of the principal of a view on one page.
func (r *reporter) page(view *index.View, page int) *standing {
	if s, ok := r.pages[page]; ok {
		return s
	}
	s := &standing{}
	for mask, rule := range r.view.index.PageRules(view, page) {
		p := authz.Prospect{True: true}
		if rule.Cond != 0 {
			p = authz.Prospects(view, rule.Cond-1, r.nowMS)
		}
		// A condition that fails does not allow, and denies.
		maybe := p.True || rule.Deny && p.Open
		every := maybe && !p.False && (rule.Deny || !p.Open)
		switch {
		case rule.Deny && maybe:
			s.denyMaybe |= mask
			if every {
				s.denyAlways |= mask
			}
		case maybe:
			s.allowMaybe |= mask
			if every {
				s.allowAlways |= mask
			}
		}
		s.rules = append(s.rules, ruling{rule, mask, maybe})
	}
	r.pages[page] = s
	return s
}

type verdict struct{ usable, always bool }

// verdict judges a thing by its items together: a deny of any denies, an allow of any allows.
func (r *reporter) verdict(view *index.View, t thing) verdict {
	var all standing
	for _, item := range t.items {
		s, bit := r.page(view, int(item)/pageItems), uint64(1)<<(item%pageItems)
		all.allowMaybe |= s.allowMaybe & bit
		all.allowAlways |= s.allowAlways & bit
		all.denyMaybe |= s.denyMaybe & bit
		all.denyAlways |= s.denyAlways & bit
	}
	return verdict{
		usable: all.allowMaybe != 0 && all.denyAlways == 0,
		always: all.allowAlways != 0 && all.denyMaybe == 0,
	}
}

// pageItems is how many items a page of the index has.
const pageItems = 64

// rules yields the rules that reach any item of a thing.
func (r *reporter) rules(view *index.View, t thing) iter.Seq[ruling] {
	return func(yield func(ruling) bool) {
		for _, item := range t.items {
			for _, rule := range r.page(view, int(item)/pageItems).rules {
				if rule.mask>>(item%pageItems)&1 != 0 && !yield(rule) {
					return
				}
			}
		}
	}
}
