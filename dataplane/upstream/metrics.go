package upstream

import (
	"context"
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// outcome is how a call ended, as the metrics say it.
type outcome int

const (
	outcomeOK outcome = iota
	outcomeUnavailable
	outcomeBusy
	outcomeRefused
	outcomeIdentity
	outcomeBroken
	outcomeTooLarge
	outcomeRedirect
	outcomeProtocol
	outcomeTimeout
	outcomeCanceled
	outcomeCount
)

// causes are the words for the outcomes and the errors that lead to them.
var causes = [outcomeCount]struct {
	word string
	err  error
}{
	outcomeOK:          {"ok", nil},
	outcomeUnavailable: {"unavailable", ErrUnavailable},
	outcomeBusy:        {"busy", ErrBusy},
	outcomeRefused:     {"refused", ErrRefused},
	outcomeIdentity:    {"identity", ErrIdentity},
	outcomeBroken:      {"broken", ErrBroken},
	outcomeTooLarge:    {"too_large", ErrTooLarge},
	outcomeRedirect:    {"redirect", ErrRedirect},
	outcomeProtocol:    {"protocol", ErrProtocol},
	outcomeTimeout:     {"timeout", context.DeadlineExceeded},
	outcomeCanceled:    {"canceled", context.Canceled},
}

func (d *destination) count(err error) {
	if err == nil {
		d.outcomes[outcomeOK].Add(1)
		return
	}
	for o, c := range causes[1:] {
		if errors.Is(err, c.err) {
			d.outcomes[o+1].Add(1)
			return
		}
	}
}

// collector reads the counts when it is asked, so that counting costs a call next to nothing. The label "upstream" is an
// upstream's scheme, host and port, of which there are as many as the published servers have.
type collector struct{ c *Client }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, append([]string{"upstream"}, labels...), nil)
}

var (
	descCalls   = desc("mcpvault_upstream_calls_total", "Calls to the upstream by how they ended.", "outcome")
	descRunning = desc("mcpvault_upstream_calls_in_flight", "Calls and streams under way.", "kind")
	descIdle    = desc("mcpvault_upstream_idle_connections", "Idle connections.")
	descDials   = desc("mcpvault_upstream_connects_total", "Attempts to connect, over all of a host's addresses.", "result")
	descStale   = desc("mcpvault_upstream_stale_connections_total", "Idle connections that were found closed when they were to be used.")
	descRetries = desc("mcpvault_upstream_retries_total", "What was tried again because nothing had been sent, and what the budget refused.", "result")
	descEjected = desc("mcpvault_upstream_ejected_addresses", "Addresses that are left out because they failed.")
)

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descCalls, descRunning, descIdle, descDials, descStale, descRetries, descEjected,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m collector) Collect(ch chan<- prometheus.Metric) {
	sums := map[string]*sample{}
	for _, d := range m.c.book.all() {
		s, ok := sums[d.name]
		if !ok {
			s = &sample{}
			sums[d.name] = s
		}
		s.add(d)
	}
	for name, s := range sums {
		s.send(ch, name)
	}
}

// sample is what is known of one server at one moment; those that differ in the identity alone are added up.
type sample struct {
	outcomes                   [outcomeCount]int64
	calls, streams             int
	idle, ejected              int
	connects, connectsFailed   int64
	stale, retried, refusedTry int64
}

func (s *sample) add(d *destination) {
	now := d.c.cfg.Now()
	_, calls, streams := d.gate.look(now)
	s.calls, s.streams = s.calls+calls, s.streams+streams
	for i := range s.outcomes {
		s.outcomes[i] += d.outcomes[i].Load()
	}
	s.idle += d.pool.len()
	s.ejected += d.addresses.ejected(now)
	s.connects += d.connects.Load()
	s.connectsFailed += d.connectsFailed.Load()
	s.stale += d.stale.Load()
	s.retried += d.retried.Load()
	s.refusedTry += d.refusedRetries.Load()
}

func (s *sample) send(ch chan<- prometheus.Metric, server string) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{server}, labels...)...)
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), append([]string{server}, labels...)...)
	}
	for i, n := range s.outcomes {
		counter(descCalls, n, causes[i].word)
	}
	gauge(descRunning, float64(s.calls), "call")
	gauge(descRunning, float64(s.streams), "stream")
	gauge(descIdle, float64(s.idle))
	counter(descDials, s.connects, "ok")
	counter(descDials, s.connectsFailed, "failed")
	counter(descStale, s.stale)
	counter(descRetries, s.retried, "retried")
	counter(descRetries, s.refusedTry, "refused")
	gauge(descEjected, float64(s.ejected))
}
