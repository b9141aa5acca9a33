package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// nodes are the names that --node takes.
var nodes = []string{"n1", "n2", "n3"}

// right makes three calls on a node whose answers are known: allowed, allowed by the condition, denied by it.
func (t *tour) right(ctx context.Context, node string) error {
	for _, c := range []struct {
		want int
		args []string
	}{
		{0, []string{"mcp", "call", "demo/echo", "message=hello", "--as", "alice", "--node", node}},
		{0, []string{"mcp", "call", "payments/refund", "amount=5", "--as", "alice", "--node", node}},
		{4, []string{"mcp", "call", "payments/refund", "amount=500", "--as", "alice", "--node", node}},
	} {
		if _, err := t.enter(ctx, c.want, c.args...); err != nil {
			return err
		}
	}
	return nil
}

func (t *tour) outage(ctx context.Context) error {
	if _, err := t.enter(ctx, 0, "dev", "kill", "controlplane", "postgres"); err != nil {
		return err
	}
	if _, err := t.enter(ctx, 7, "user", "list"); err != nil {
		return fmt.Errorf("the control plane is not gone: %w", err)
	}
	for _, n := range nodes {
		if err := t.right(ctx, n); err != nil {
			return err
		}
	}
	t.held("three nodes, nine calls, every decision right")
	return nil
}

func (t *tour) lonely(ctx context.Context) error {
	if _, err := t.enter(ctx, 0, "dev", "kill", "n3"); err != nil {
		return err
	}
	began := time.Now()
	if _, err := t.enter(ctx, 0, "dev", "restart", "n3"); err != nil {
		return err
	}
	t.figure("restart_ms", float64(time.Since(began).Milliseconds()))
	if err := t.right(ctx, "n3"); err != nil {
		return err
	}
	t.held("the node serves from its own disk, %d ms after its start", time.Since(began).Milliseconds())
	return nil
}

// leader finds the node that leads, by its place; -1 for none.
func (t *tour) leader(ctx context.Context, except int) int {
	for i, url := range t.info.Metrics {
		if i != except && page(ctx, url+"/readyz/leader") {
			return i
		}
	}
	return -1
}

func page(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}

// load calls a node again and again until it is stopped, and counts.
type load struct {
	made, failed int
	first        string
}

func (t *tour) call(ctx context.Context, stop <-chan struct{}, node string) load {
	var l load
	for {
		select {
		case <-stop:
			return l
		case <-ctx.Done():
			return l
		default:
		}
		r := t.run(ctx, "mcp", "call", "demo/echo", "message=hello", "--as", "alice", "--node", node)
		l.made++
		if r.status != 0 {
			if l.failed++; l.first == "" {
				l.first = strings.TrimSpace(r.errout)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (t *tour) failover(ctx context.Context) error {
	old := -1
	if _, err := until(ctx, 5*time.Second, "the cell has a leader", func() error {
		if old = t.leader(ctx, -1); old < 0 {
			return errors.New("no node leads")
		}
		return nil
	}); err != nil {
		return err
	}
	t.say("  %s leads; the others are called all the time from here on\n", nodes[old])
	stop := make(chan struct{})
	loads := make([]load, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		if i != old {
			wg.Go(func() { loads[i] = t.call(ctx, stop, n) })
		}
	}
	took, err := t.killLeader(ctx, old)
	time.Sleep(200 * time.Millisecond) // The new leader serves under load, too.
	close(stop)
	wg.Wait()
	if err != nil {
		return err
	}
	made, failed, first := 0, 0, ""
	for _, l := range loads {
		made, failed = made+l.made, failed+l.failed
		if l.first != "" {
			first = l.first
		}
	}
	t.figure("failover_ms", float64(took.Milliseconds()))
	t.figure("calls", float64(made))
	t.figure("failed_calls", float64(failed))
	if failed > 0 || made == 0 {
		return fmt.Errorf("%d of %d calls failed: %s", failed, made, first)
	}
	t.held("a new leader after %d ms; %d calls on the other nodes meanwhile, 0 failed", took.Milliseconds(), made)
	_, err = t.enter(ctx, 0, "dev", "restart", nodes[old])
	return err
}

func (t *tour) killLeader(ctx context.Context, old int) (time.Duration, error) {
	time.Sleep(100 * time.Millisecond) // Some calls before, for comparison.
	if _, err := t.enter(ctx, 0, "dev", "kill", nodes[old]); err != nil {
		return 0, err
	}
	return until(ctx, 10*time.Second, "a new leader", func() error {
		if t.leader(ctx, old) < 0 {
			return errors.New("no node leads")
		}
		return nil
	})
}

func (t *tour) returned(ctx context.Context) error {
	for _, name := range []string{"postgres", "controlplane"} {
		if _, err := t.enter(ctx, 0, "dev", "restart", name); err != nil {
			return err
		}
	}
	var all []record
	took, err := until(ctx, 10*time.Second, "the audit records of the outage arrive", func() (err error) {
		if all, err = t.records(ctx); err != nil {
			return err
		}
		return t.complete(all)
	})
	if err != nil {
		return err
	}
	t.figure("audit_arrived_ms", float64(took.Milliseconds()))
	t.figure("decisions", float64(len(t.ids)))
	if err := t.verify(ctx); err != nil {
		return err
	}
	t.held("%d decisions of this tour are in the audit: none is missing, none is twice", len(t.ids))
	return t.reconnected(ctx)
}

// reconnected waits until every node hears the control plane again, so that the next edit reaches all.
func (t *tour) reconnected(ctx context.Context) error {
	_, err := until(ctx, 10*time.Second, "every node is connected again", func() error {
		for i, url := range t.info.Metrics {
			if !page(ctx, url+"/readyz/controlplane") {
				return fmt.Errorf("%s is not", nodes[i])
			}
		}
		return nil
	})
	return err
}
