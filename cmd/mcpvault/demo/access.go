package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// The words of the tour.
const (
	condition = "context.args.amount < 100"
	target    = "server:payments/refund"
)

func (t *tour) allowed(ctx context.Context) error {
	r, err := t.enter(ctx, 0, "mcp", "call", "demo/echo", "message=hello", "--as", "alice")
	if err != nil {
		return err
	}
	if effect, id := r.decision(); effect != "allow" || id == "" || strings.TrimSpace(r.out) != "hello" {
		return fmt.Errorf("the call was not allowed as expected: %s", r.errout)
	}
	t.held("allowed: the message came back")
	return nil
}

func (t *tour) refused(ctx context.Context) error {
	if _, err := t.enter(ctx, 4, "mcp", "call", "payments/refund", "amount=5", "--as", "alice"); err != nil {
		return err
	}
	r, err := t.enter(ctx, 4, "access", "explain", "alice", "payments/refund", "amount=5")
	if err != nil {
		return err
	}
	if !strings.Contains(r.out, "no_grant") || !strings.Contains(r.out, "mcpvault grant") {
		return errors.New("the explanation does not say why, or not what would allow it")
	}
	t.held("refused, with the reason and what would allow it")
	return nil
}

func (t *tour) granted(ctx context.Context) error {
	r, err := t.enter(ctx, 0, "grant", "user:alice", target, "--when", condition, "--for", "1h", "--reason", "demo")
	if err != nil {
		return err
	}
	began := time.Now()
	if !strings.Contains(r.errout, "applied by 3 of 3 nodes") {
		return fmt.Errorf("not every node has the grant: %s", r.errout)
	}
	t.figure("published_ms", milliseconds(r.errout))
	if _, err := until(ctx, time.Second, "the grant is law", func() error {
		if r = t.run(ctx, "mcp", "call", "payments/refund", "amount=5", "--as", "alice"); r.status != 0 {
			return errors.New(strings.TrimSpace(r.errout))
		}
		return nil
	}); err != nil {
		return err
	}
	t.say("$ mcpvault mcp call payments/refund amount=5 --as alice\n")
	t.show(r)
	t.figure("allowed_after_ms", float64(time.Since(began).Microseconds())/1000)
	if _, err := t.enter(ctx, 4, "mcp", "call", "payments/refund", "amount=500", "--as", "alice"); err != nil {
		return err
	}
	t.held("amount=5 is allowed, amount=500 is denied")
	return nil
}

// milliseconds reads "in 38 ms".
func milliseconds(s string) float64 {
	var ms float64
	if _, after, ok := strings.Cut(s, " nodes in "); ok {
		_, _ = fmt.Sscanf(after, "%f ms", &ms) // 0 when it is not said.
	}
	return ms
}

// record is what the tour reads of an audit record.
type record struct {
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	IntentID string `json:"intent_id"`
	Method   string `json:"method"`
	Server   string `json:"server"`
	Target   string `json:"target"`
	Decision string `json:"decision"`
	Outcome  string `json:"outcome"`
	Node     string `json:"node"`
}

// records reads alice's calls from the control plane's ledger.
func (t *tour) records(ctx context.Context) ([]record, error) {
	r := t.run(ctx, "audit", "search", "--principal", "alice", "--limit", "1000", "-o", "json")
	if r.status != 0 {
		return nil, errors.New(strings.TrimSpace(r.errout))
	}
	var all []record
	if err := json.Unmarshal([]byte(r.out), &all); err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}
	return all, nil
}

// complete checks that every decision that was shown is in the audit once, with one outcome where there was an intent.
func (t *tour) complete(all []record) error {
	seen, outcomes := map[string]int{}, map[string]int{}
	intents := map[string]bool{}
	for _, r := range all {
		switch r.Kind {
		case "outcome", "unknown_outcome":
			outcomes[r.IntentID]++
		default:
			seen[r.ID]++
			intents[r.ID] = r.Kind == "intent"
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	missing, twice := 0, 0
	for id := range t.ids {
		switch n := seen[id]; {
		case n == 0, intents[id] && outcomes[id] == 0:
			missing++
		case n > 1, outcomes[id] > 1:
			twice++
		}
	}
	if missing+twice > 0 {
		return fmt.Errorf("of %d decisions %d are missing and %d are there twice", len(t.ids), missing, twice)
	}
	return nil
}

func (t *tour) audited(ctx context.Context) error {
	took, err := until(ctx, 5*time.Second, "every call is in the audit", func() error {
		all, err := t.records(ctx)
		if err != nil {
			return err
		}
		return t.complete(all)
	})
	if err != nil {
		return err
	}
	t.figure("audit_arrived_ms", float64(took.Microseconds())/1000)
	if _, err := t.enter(ctx, 0, "audit", "search", "--principal", "alice", "--since", "1h"); err != nil {
		return err
	}
	if err := t.verify(ctx); err != nil {
		return err
	}
	t.held("all %d decisions are there, each once", len(t.ids))
	return nil
}

// verify proves every log in full.
func (t *tour) verify(ctx context.Context) error {
	if _, err := t.enter(ctx, 0, "audit", "verify"); err != nil {
		return err
	}
	t.held("every log is what was signed")
	return nil
}

func (t *tour) revoked(ctx context.Context) error {
	r, err := t.enter(ctx, 0, "revoke", "user:alice", target, "--when", condition)
	if err != nil {
		return err
	}
	if !strings.Contains(r.errout, "applied by 3 of 3 nodes") {
		return fmt.Errorf("not every node has it: %s", r.errout)
	}
	ms := milliseconds(r.errout)
	t.figure("commit_to_last_node_ms", ms)
	for _, n := range nodes {
		if _, err := t.enter(ctx, 4, "mcp", "call", "payments/refund", "amount=5", "--as", "alice", "--node", n); err != nil {
			return err
		}
	}
	t.held("denied on every node; from the commit to the last node it took %.0f ms", ms)
	return nil
}
