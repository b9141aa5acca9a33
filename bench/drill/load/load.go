// Package load calls a gateway at a steady rate and hands every answer to a judge: lists and refused calls, calls that reach a
// server, and policy changes, spread over all nodes. It is an open loop: what is slow does not make it call less.
//
// A request goes to the next node only when its connection was refused, so that nothing was sent. One whose outcome is not known,
// because the connection broke or no answer came, is counted as unknown and never sent again.
package load

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
)

// Rates are how much is asked for in a second.
type Rates struct {
	Decisions float64 `json:"decisions_per_second"`
	Calls     float64 `json:"calls_per_second"`
	Changes   float64 `json:"changes_per_second"`
}

// Full is the load that promises are measured under.
var Full = Rates{Decisions: 1000, Calls: 50, Changes: 5}

// Scaled is the full load's mix with as many decisions a second.
func Scaled(decisions float64) Rates {
	f := decisions / Full.Decisions
	return Rates{Decisions: decisions, Calls: max(1, Full.Calls*f), Changes: max(0.5, Full.Changes*f)}
}

// Person is a caller.
type Person struct {
	Name, Token string
	// Host is the Host header, "" for that of the address.
	Host string
}

// Tools are the server's tools by what the load does with them.
type Tools struct {
	// Read and Write are granted to everybody all the time; Never to nobody. Write has effects.
	Read, Write, Never string
	// Flips are granted and taken away.
	Flips []string
	// Other tools are listed and not called.
	Other []string
}

// All are the names of all tools.
func (t Tools) All() []string {
	return slices.Concat([]string{t.Read, t.Write, t.Never}, t.Flips, t.Other)
}

// Policy changes what a person may do.
type Policy interface {
	// Change gives the right or takes it away, tells change what became of it, and returns once every node that can be reached has
	// acknowledged it. An error means that nobody knows whether it was made, unless it was told that it was not.
	Change(ctx context.Context, r judge.Right, allowed bool, change *judge.Change) error
}

// Config is what is called, and how much.
type Config struct {
	// Nodes are the addresses of the nodes' endpoint of the server.
	Nodes []string
	// Elsewhere are asked only when none of Nodes accepts connections: the nodes of the next cell.
	Elsewhere []string
	People    []Person
	Tools     Tools
	Rates     Rates
	Judge     *judge.Judge
	Policy    Policy
	// Transport carries the requests; nil for plain HTTP.
	Transport *http.Transport
	// Tolerated are the reasons of refusals that are by design while something is broken, "audit_unavailable" for example.
	Tolerated []string
	// Patience is how long an answer may take; 0 for 5 s.
	Patience time.Duration
}

// maxInFlight bounds the requests under way; what would exceed it counts as failed.
const maxInFlight = 2000

// Counts are totals so far.
type Counts struct {
	Requests int `json:"requests"`
	OK       int `json:"ok"`
	// Closed are refusals by design while something is broken.
	Closed int `json:"closed"`
	// Failed got no right answer and had no effect that anybody knows of: an error, or no node that accepts connections.
	Failed int `json:"failed"`
	// Unknown were sent and not answered.
	Unknown int `json:"unknown"`
	// Next were accepted by another node than the one that was asked first.
	Next          int `json:"next_node"`
	Changes       int `json:"changes"`
	FailedChanges int `json:"failed_changes"`
}

// Load is one run.
type Load struct {
	cfg    Config
	client *http.Client
	turn   atomic.Uint64
	ids    atomic.Uint64
	flying atomic.Int64

	mu      sync.Mutex // Guards what is below.
	counts  Counts
	samples []Sample
	errors  map[string]int
}

// Sample is one request's fate.
type Sample struct {
	At    time.Time
	Took  time.Duration
	Class Class
	Call  bool
}

// Class is what a request came to.
type Class int

// Classes.
const (
	OK Class = iota
	Closed
	Failed
	Unknown
)

// New prepares a run. It does no IO.
func New(cfg Config) *Load {
	t := cfg.Transport
	if t == nil {
		t = &http.Transport{}
	}
	t.MaxIdleConnsPerHost, t.MaxIdleConns, t.IdleConnTimeout = 256, 0, 30*time.Second
	t.DialContext = (&net.Dialer{Timeout: 2 * time.Second}).DialContext
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Second
	}
	return &Load{cfg: cfg, client: &http.Client{Transport: t, Timeout: cfg.Patience}, errors: map[string]int{}}
}

// Run calls until ctx ends, and returns when the last answer has come.
func (l *Load) Run(ctx context.Context) {
	var pacers, requests sync.WaitGroup
	pace := func(rate float64, request func(n int)) {
		pacers.Go(func() {
			l.pace(ctx, rate, func(n int) {
				if l.flying.Add(1) > maxInFlight {
					l.flying.Add(-1)
					l.note(Sample{At: time.Now(), Class: Failed}, "more than can be under way at once")
					return
				}
				requests.Go(func() {
					defer l.flying.Add(-1)
					request(n)
				})
			})
		})
	}
	pace(l.cfg.Rates.Decisions, l.decision)
	pace(l.cfg.Rates.Calls, l.call)
	changes := make(chan struct{})
	go func() {
		defer close(changes)
		l.changes(ctx)
	}()
	pacers.Wait()
	requests.Wait()
	<-changes
	l.client.CloseIdleConnections()
}

// pace calls f rate times a second, spread evenly; what a busy machine makes late is caught up with.
func (l *Load) pace(ctx context.Context, rate float64, f func(n int)) {
	if rate <= 0 {
		return
	}
	const most = 5 * time.Millisecond
	every := time.Duration(float64(time.Second) / rate)
	tick := time.NewTicker(max(every, most))
	defer tick.Stop()
	begin, n := time.Now(), 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for due := int(time.Since(begin).Seconds() * rate); n < due; n++ {
			f(n)
		}
	}
}

// decision asks for a list or makes a call that must be refused, in turn.
func (l *Load) decision(n int) {
	p := l.cfg.People[n/2%len(l.cfg.People)]
	if n%2 == 0 {
		l.ask(request{person: p, method: "tools/list"})
		return
	}
	l.ask(request{person: p, method: "tools/call", tool: l.cfg.Tools.Never, id: l.id()})
}

// call makes a call that reaches the server: two in four with effects, one that reads, one that may be allowed or not.
func (l *Load) call(n int) {
	p, t := l.cfg.People[n/4%len(l.cfg.People)], l.cfg.Tools
	tool := t.Write
	switch n % 4 {
	case 1:
		tool = t.Read
	case 3:
		tool = t.Flips[n/4%len(t.Flips)]
	}
	l.ask(request{person: p, method: "tools/call", tool: tool, id: l.id(), call: true, effects: tool == t.Write})
}

func (l *Load) id() string { return fmt.Sprintf("c%d", l.ids.Add(1)) }

// changes gives and takes rights, one after the other on each right, so that their order is known.
func (l *Load) changes(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	type turn struct {
		right   judge.Right
		allowed bool
	}
	free := make(chan turn, len(l.cfg.People)*len(l.cfg.Tools.Flips))
	for _, tool := range l.cfg.Tools.Flips {
		for _, p := range l.cfg.People {
			free <- turn{judge.Right{Person: p.Name, Tool: tool}, true}
		}
	}
	l.pace(ctx, l.cfg.Rates.Changes, func(int) {
		var t turn
		select {
		case t = <-free:
		default:
			return // All are under way: nothing is acknowledged at present.
		}
		wg.Go(func() {
			change := l.cfg.Judge.Submit(t.right, t.allowed)
			err := l.cfg.Policy.Change(context.WithoutCancel(ctx), t.right, t.allowed, change)
			l.mu.Lock()
			l.counts.Changes++
			if err != nil {
				l.counts.FailedChanges++
			}
			l.mu.Unlock()
			if err == nil {
				t.allowed = !t.allowed
			}
			free <- t
		})
	})
}

// note counts a request's fate.
func (l *Load) note(s Sample, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	l.counts.Requests++
	switch s.Class {
	case OK:
		l.counts.OK++
	case Closed:
		l.counts.Closed++
	case Failed:
		l.counts.Failed++
	case Unknown:
		l.counts.Unknown++
	}
	if why != "" && (len(l.errors) < 100 || l.errors[why] > 0) {
		l.errors[why]++
	}
}

// Counts returns the totals so far.
func (l *Load) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Samples returns every request so far, in the order of their answers.
func (l *Load) Samples() []Sample {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.samples)
}

// Errors returns why requests were not answered rightly, and how often.
func (l *Load) Errors() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make(map[string]int, len(l.errors))
	for k, v := range l.errors {
		out[k] = v
	}
	return out
}
