package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"
)

// strike kills processes with SIGKILL, waits a moment and starts them again, each timed until it serves.
func (c *campaign) strike(ctx context.Context, victims []string) error {
	for _, v := range victims {
		if err := syscall.Kill(c.pid(v), syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill %s: %w", v, err)
		}
		c.mu.Lock()
		c.report.Kills++
		c.report.Victims[v]++
		c.mu.Unlock()
	}
	time.Sleep(time.Duration(c.rng.IntN(400)) * time.Millisecond)
	errs := make([]error, len(victims))
	var wg sync.WaitGroup
	for i, v := range victims {
		wg.Go(func() { errs[i] = c.restart(ctx, v) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return c.dev.Reload()
}

// pid is 0 for nothing, which kill would take for everything; a name that is wrong is this program's mistake.
func (c *campaign) pid(name string) int {
	pid := c.dev.PIDs.ControlPlane
	if name != "controlplane" {
		var n int
		if _, err := fmt.Sscanf(name, "n%d", &n); err != nil {
			panic(err)
		}
		pid = c.dev.PIDs.Nodes[n-1]
	}
	if pid <= 1 {
		panic(fmt.Sprintf("%s has process id %d", name, pid))
	}
	return pid
}

// restartLimit is far more than a restart may take: what is slower is a hang.
const restartLimit = 60 * time.Second

// restart starts a process again. What is measured is from the command, which starts a process of its own first, to the first
// good answer.
func (c *campaign) restart(ctx context.Context, name string) error {
	begin := time.Now()
	if _, err := c.dev.CLI(ctx, "dev", "restart", name, "--data-dir", c.dev.Dir); err != nil {
		return err
	}
	ready := func() bool { return c.admin.post(ctx, "SystemService/CheckHealth", map[string]any{}, nil) == nil }
	if name != "controlplane" {
		n := int(name[1] - '1')
		ready = func() bool { return c.ready(ctx, n) }
	}
	for !ready() {
		if time.Since(begin) > restartLimit || ctx.Err() != nil {
			return fmt.Errorf("%s does not serve %s after its restart", name, restartLimit)
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.restarts = append(c.restarts, time.Since(begin))
	return nil
}

func spread(all []time.Duration) Spread {
	if len(all) == 0 {
		return Spread{}
	}
	all = slices.Sorted(slices.Values(all))
	ms := func(q float64) float64 { return float64(all[int(q*float64(len(all)-1))].Microseconds()) / 1000 }
	return Spread{Median: ms(0.5), P95: ms(0.95), Max: ms(1), N: len(all)}
}
