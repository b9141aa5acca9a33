package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// call is one call with an effect.
type call struct {
	id, trace string
	answer    answer
}

// register is a switch that one worker turns, and what it may stand on now.
type register struct {
	token string
	may   map[bool]bool
	acked int
}

// node picks one; workers go round, so that each meets every node.
func (c *campaign) node(i int) string { return c.urls[i%len(c.urls)] }

// caller calls the tool with the effect, each call once, and keeps what came of it.
func (c *campaign) caller(ctx context.Context, worker int) {
	for i := 0; !c.stop.Load() && ctx.Err() == nil; i++ {
		id := fmt.Sprintf("c%d-%d", worker, i)
		trace := fmt.Sprintf("%016x%016x", worker+1, i+1)
		n := worker + i
		a := effect(ctx, c.node(n), c.alice, id, trace)
		c.mu.Lock()
		c.calls = append(c.calls, &call{id, trace, a})
		c.history.generation(n%len(c.urls), a)
		c.mu.Unlock()
		if i%7 == 0 {
			c.overTheBound(ctx, n)
		}
		if a.err != nil {
			time.Sleep(20 * time.Millisecond) // a node that is down refuses at once
		}
	}
}

// overTheBound makes calls that a condition denies, or that it cannot be computed for.
func (c *campaign) overTheBound(ctx context.Context, n int) {
	for _, arguments := range []string{`{"n":50}`, `{"n":99999999999999999999999}`, `{"n":"x"}`, `{}`} {
		a := ask(ctx, http.MethodPost, c.node(n)+"/canary", c.alice,
			fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"bounded","arguments":%s,%s}}`, arguments, meta),
			"Mcp-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "bounded")
		if a.done() {
			c.found("a call with %s was let through, which is not below 10", arguments)
		}
	}
}

// changer turns one person's grant off and on.
func (c *campaign) changer(ctx context.Context, name string) {
	for i := 0; !c.stop.Load() && ctx.Err() == nil; i++ {
		on := i%2 == 1
		err := c.grant(ctx, name, on)
		c.mu.Lock()
		r := c.grants[name]
		switch {
		case err == nil:
			r.may, r.acked = map[bool]bool{on: true}, r.acked+1
		case !errors.Is(err, errRefused):
			r.may[on] = true // nobody knows
		}
		c.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// killer kills people now and then.
func (c *campaign) killer(ctx context.Context) {
	for _, d := range c.doomed {
		if c.stop.Load() || ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		d.asked = true
		c.mu.Unlock()
		begin := time.Now()
		err := c.admin.post(ctx, "AccessService/Kill", map[string]any{"tenant": "acme", "kind": "user", "subject": d.name}, nil)
		c.mu.Lock()
		d.acked = err == nil
		if err == nil {
			c.history.killed(d.name, begin, time.Now())
		} else if !errors.Is(err, errRefused) {
			c.history.maybeKilled(d.name, begin)
		}
		c.mu.Unlock()
		for i := range 30 * 60 / perMinute / 10 {
			if c.stop.Load() {
				return
			}
			n := i % len(c.urls)
			a := effect(ctx, c.node(n), d.token, "by "+d.name, fmt.Sprintf("%032x", 1))
			c.mu.Lock()
			c.history.askedAs(d.name, n, a)
			c.mu.Unlock()
			time.Sleep(200 * time.Millisecond)
		}
	}
}

const legacy = "2025-11-25"

// sessionist opens sessions as a legacy client does, uses them on every node, and ends some.
func (c *campaign) sessionist(ctx context.Context, worker int) {
	for i := worker; !c.stop.Load() && ctx.Err() == nil; i++ {
		a := ask(ctx, http.MethodPost, c.node(i)+"/canary", c.alice,
			`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+legacy+`","capabilities":{},"clientInfo":{"name":"crash","version":"1"}}}`)
		id := a.header.Get("Mcp-Session-Id")
		if a.err != nil || a.status != http.StatusOK || id == "" {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		s := &session{id: id}
		c.mu.Lock()
		c.sessions = append(c.sessions, s)
		c.history.opened(id, a)
		c.mu.Unlock()
		for n := range c.urls {
			c.useSession(ctx, s, n)
		}
		if i%3 != 0 {
			c.endSession(ctx, s, i)
			for n := range c.urls {
				c.useSession(ctx, s, n)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (c *campaign) useSession(ctx context.Context, s *session, n int) answer {
	a := ask(ctx, http.MethodPost, c.node(n)+"/canary", c.alice, `{"jsonrpc":"2.0","id":2,"method":"tools/list"}`,
		"Mcp-Session-Id", s.id, "Mcp-Protocol-Version", legacy)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.history.used(s.id, n, a)
	return a
}

func (c *campaign) endSession(ctx context.Context, s *session, i int) {
	c.mu.Lock()
	s.asked = true
	c.mu.Unlock()
	a := ask(ctx, http.MethodDelete, c.node(i+1)+"/canary", c.alice, "", "Mcp-Session-Id", s.id, "Mcp-Protocol-Version", legacy)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case a.err == nil && (a.status == http.StatusOK || a.status == http.StatusNoContent || a.status == http.StatusAccepted):
		s.ended, s.last = true, a.ended
		c.history.ended(s.id, a)
	case a.err != nil && a.sent || a.status >= 500:
		c.history.maybeEnded(s.id, a)
	}
}

// disturb kills and restarts.
func (c *campaign) disturb(ctx context.Context) error {
	for done := 0; done < c.cfg.Kills; {
		wait := time.Duration(200+c.rng.IntN(1300)) * time.Millisecond
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		var victims []string
		switch x := c.rng.IntN(10); {
		case x < 7:
			victims = []string{fmt.Sprintf("n%d", 1+c.rng.IntN(len(c.urls)))}
		case x < 8 && c.cfg.Kills-done >= len(c.urls):
			for n := range c.urls {
				victims = append(victims, fmt.Sprintf("n%d", n+1))
			}
		default:
			victims = []string{"controlplane"}
		}
		if err := c.strike(ctx, victims); err != nil {
			return err
		}
		done += len(victims)
		c.cfg.Log("%d of %d: %s", done, c.cfg.Kills, strings.Join(victims, " "))
	}
	return nil
}
