package cell

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// staleness is how much of a bound a tenant's policy has used up, in trusted time.
type staleness struct {
	tenant string
	// class is read or write; the latter stands for destructive calls too.
	class      string
	age, bound time.Duration
	// after is what the tenant wants when the bound is over.
	readOnly bool
}

const (
	levelFresh = iota
	levelHalf
	levelOver
)

func (s staleness) level() int {
	switch {
	case s.age > s.bound:
		return levelOver
	case s.age > s.bound/2:
		return levelHalf
	}
	return levelFresh
}

func (s staleness) String() string {
	age, what := s.age.Round(time.Second), map[string]string{"read": "reads", "write": "calls with effects"}[s.class]
	switch {
	case s.level() == levelHalf:
		return fmt.Sprintf("%s: nobody has confirmed the policy for %s: %s go on for %s", s.tenant, age, what, (s.bound - s.age).Round(time.Second))
	case s.level() == levelOver && s.class == "read" && s.readOnly:
		return fmt.Sprintf("%s: nobody has confirmed the policy for %s, and the bound of %s is over: reads go on as the organisation wants", s.tenant, age, s.bound)
	case s.level() == levelOver:
		return fmt.Sprintf("%s: nobody has confirmed the policy for %s, and the bound of %s is over: %s are refused", s.tenant, age, s.bound, what)
	}
	return fmt.Sprintf("%s: confirmed %s ago", s.tenant, age)
}

// stalenessOf judges both classes of each tenant, in the order of their names.
func stalenessOf(tenants []*pdp.Tenant, now time.Time) []staleness {
	var all []staleness
	for _, t := range tenants {
		age := max(0, now.Sub(time.UnixMilli(t.ConfirmedMS())))
		readOnly := t.Settings.GetAfterStaleness() == snapshotv1.AfterStaleness_AFTER_STALENESS_READ_ONLY
		for class, ms := range map[string]int64{"read": t.Settings.GetMaxStalenessReadMs(), "write": t.Settings.GetMaxStalenessWriteMs()} {
			all = append(all, staleness{t.Name, class, age, time.Duration(ms) * time.Millisecond, readOnly})
		}
	}
	slices.SortFunc(all, func(a, b staleness) int { return strings.Compare(a.tenant+" "+a.class, b.tenant+" "+b.class) })
	return all
}

// stalenessProblem is what is half way to its bound or over it.
func (n *Node) stalenessProblem() error {
	var all []error
	for _, s := range stalenessOf(n.pdp.Current().Tenants(), n.clock.Now()) {
		if s.level() > levelFresh {
			all = append(all, errors.New(s.String()))
		}
	}
	return errors.Join(all...)
}

// warnOfStaleness says in the log when a bound is half used up, when it is over, and when it counts anew.
func (n *Node) warnOfStaleness(ctx context.Context) {
	for _, s := range stalenessOf(n.pdp.Current().Tenants(), n.clock.Now()) {
		key := s.tenant + " " + s.class
		before := n.staleLevels[key]
		level := s.level()
		if n.staleLevels[key] = level; level == before {
			continue
		}
		switch level {
		case levelFresh:
			n.log.InfoContext(ctx, "the policy is confirmed again", "tenant", s.tenant, "class", s.class)
		case levelHalf:
			n.log.WarnContext(ctx, "half of a staleness bound is used up", "tenant", s.tenant, "class", s.class, "age", s.age.Round(time.Second), "bound", s.bound)
		case levelOver:
			n.log.ErrorContext(ctx, "a staleness bound is over", "tenant", s.tenant, "class", s.class, "age", s.age.Round(time.Second), "bound", s.bound, "reads_go_on", s.readOnly)
		}
	}
}

// bounds is how much of each bound is used up. A cell's tenants are a known, small set.
type bounds struct{ n *Node }

var boundDesc = prometheus.NewDesc("mcpvault_staleness_ratio",
	"Age of the last confirmation of a tenant's policy, divided by its bound: warn above 0.5; above 1 the class is closed, or reads go on where the tenant wants that.",
	[]string{"tenant", "class"}, nil)

// Describe implements prometheus.Collector.
func (b *bounds) Describe(out chan<- *prometheus.Desc) { out <- boundDesc }

// Collect implements prometheus.Collector.
func (b *bounds) Collect(out chan<- prometheus.Metric) {
	for _, s := range stalenessOf(b.n.pdp.Current().Tenants(), b.n.clock.Now()) {
		out <- prometheus.MustNewConstMetric(boundDesc, prometheus.GaugeValue, float64(s.age)/float64(max(s.bound, 1)), s.tenant, s.class)
	}
}
