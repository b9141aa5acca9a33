package snapshots

import "testing"

// Between the commit of a generation and the moment it is in force the outbox is empty already: whoever waits for a revocation
// must not be told then that the old generation holds it.
func TestARevisionIsNotSaidToBeInForceWhileItsGenerationIsOnlyStored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		revision, oldestOpen, stored, inForce uint64
		want                                  bool
	}{
		"waits in the outbox":                {26, 26, 25, 25, false},
		"waits behind an older one":          {26, 24, 23, 23, false},
		"stored, not in force":               {26, 0, 26, 25, false},
		"a kill, and all is in force":        {26, 0, 25, 25, true},
		"a kill, and a later write waits":    {26, 27, 25, 25, true},
		"a kill, and a write is only stored": {26, 0, 27, 25, false},
	} {
		if got := needsNone(c.revision, c.oldestOpen, c.stored, c.inForce); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
