package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// served is what one node says that it serves: a generation and a state hash for each tenant.
type served struct {
	Node    string            `json:"node"`
	Applied map[string]string `json:"applied"`
	States  map[string]string `json:"state_hashes"`
}

func servedBy(t *testing.T, d *devrun.Dev) map[string]served {
	t.Helper()
	out, _, _ := cli(t, d, "cell", "status", "-o", "json")
	var list []served
	_ = json.Unmarshal([]byte(out), &list)
	all := map[string]served{}
	for _, s := range list {
		all[s.Node] = s
	}
	return all
}

// newest is the generation of the tenant that the node has applied, 0 when it does not say.
func (s served) newest() (tenant string, generation int) {
	for id, v := range s.Applied {
		if _, g, ok := strings.Cut(v, "."); ok {
			if n, err := strconv.Atoi(g); err == nil && n > generation {
				tenant, generation = id, n
			}
		}
	}
	return tenant, generation
}

// killedWhileGenerationsArrive edits policy without a pause, deltas and new bases in turn, and kills nodes wherever they
// are with it: staging, activating or applying. No node may ever serve less than it did, and in the end all serve one
// state.
func killedWhileGenerationsArrive(t *testing.T, d *devrun.Dev) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	edits := 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			switch {
			case edits%5 == 4: // labels are in the catalogue: a new base
				_, _ = d.CLI(ctx, "server", "label", "demo", fmt.Sprintf("round=%d", edits))
			case edits%2 == 0:
				_, _ = d.CLI(ctx, "grant", "user:bob", "server:payments/refund", "--when", fmt.Sprintf("context.args.amount < %d", edits+1))
			default:
				_, _ = d.CLI(ctx, "revoke", "user:bob", "server:payments/refund")
			}
			cancel()
			edits++
		}
	})
	floor := map[string]int{}
	look := func() {
		for node, s := range servedBy(t, d) {
			_, g := s.newest()
			if g > 0 && g < floor[node] {
				t.Errorf("node %s serves generation %d after %d", node, g, floor[node])
			}
			floor[node] = max(floor[node], g)
		}
	}
	for range 8 {
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond) // wherever the node is with it just then
		look()
		n := rand.IntN(len(d.PIDs.Nodes))
		kill(t, d.PIDs.Nodes[n])
		restart(t, d, fmt.Sprintf("n%d", n+1))
	}
	close(stop)
	wg.Wait()
	_, _, _ = cli(t, d, "revoke", "user:bob", "server:payments/refund") // if the last edit has left it
	must(t, d, 0, "server", "label", "demo", "round-")
	eventually(t, "all nodes serve one state", func() bool {
		look()
		states := map[string]bool{}
		all := servedBy(t, d)
		for _, s := range all {
			tenant, g := s.newest()
			states[fmt.Sprintf("%d %s", g, s.States[tenant])] = len(s.States[tenant]) == 64
		}
		if len(all) != len(d.PIDs.Nodes) || len(states) != 1 {
			return false
		}
		for _, hash := range states {
			if !hash {
				return false
			}
		}
		return true
	})
	t.Logf("%d edits, 8 kills; newest generations %v", edits, floor)
	wantRight(t, d, 0, 1, 2)
}
