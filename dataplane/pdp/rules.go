package pdp

import (
	"sync"

	"github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// maxRules bounds how many answers a tenant keeps.
const maxRules = 1 << 14

// rules keeps which rules reach what, which a record of every decision names and which takes longer to find than to decide.
type rules struct {
	mu   sync.RWMutex
	kept map[ruleKey][]index.Rule // guarded by mu
}

type ruleKey struct {
	principal index.PrincipalID
	server    index.ServerID
	item      index.ItemID
}

// Rules lists the rules that reach an item of a view of this tenant's index.
func (t *Tenant) Rules(v *index.View, item index.ItemID) []index.Rule {
	if v.Index() == nil {
		return nil
	}
	key := ruleKey{v.Principal(), v.Server(), item}
	t.rules.mu.RLock()
	found, ok := t.rules.kept[key]
	t.rules.mu.RUnlock()
	if ok {
		return found
	}
	found = authz.Reaching(v, item)
	t.rules.mu.Lock()
	defer t.rules.mu.Unlock()
	if t.rules.kept == nil || len(t.rules.kept) >= maxRules {
		t.rules.kept = make(map[ruleKey][]index.Rule)
	}
	t.rules.kept[key] = found
	return found
}
