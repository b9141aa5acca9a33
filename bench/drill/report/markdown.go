package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Markdown is the run for people.
func (r *Run) Markdown() []byte {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("# Drills: %s", verdict(r.Passed()))
	say("")
	say("| | |\n|---|---|")
	say("| started | %s, %.0f s |", r.Started.Format("2006-01-02 15:04:05 UTC"), r.Seconds)
	say("| installation | %s |", cell(r.Installation))
	say("| version | %s |", cell(r.Version))
	say("| machine | %s |", cell(r.Machine))
	say("| load | %.0f decisions/s (half lists, half refused calls), %.0f calls/s, %.1f policy changes/s |", r.Load.Decisions, r.Load.Calls, r.Load.Changes)
	say("")
	say("| drill | verdict | RTO ms | failed | unknown | wrong | lost records | p50 ms before / during / after | p99 ms before / during / after |")
	say("|---|---|---|---|---|---|---|---|---|")
	for i := range r.Drills {
		d := &r.Drills[i]
		if d.Unavailable != "" {
			say("| %s | not run: %s | | | | | | | |", d.Name, cell(d.Unavailable))
			continue
		}
		say("| %s | %s | %.0f | %d | %d | %d | %d | %.1f / %.1f / %.1f | %.1f / %.1f / %.1f |", d.Name, verdict(d.Passed), d.RTO, d.Failed, d.Unknown, d.Wrong, d.Lost,
			d.Before.P50, d.During.P50, d.After.P50, d.Before.P99, d.During.P99, d.After.P99)
	}
	for i := range r.Drills {
		r.Drills[i].markdown(say)
	}
	return []byte(b.String())
}

func (d *Drill) markdown(say func(string, ...any)) {
	say("")
	say("## %s: %s", d.Name, verdict(d.Passed))
	say("")
	say("What it does: %s. Who notices: %s.", d.Breaks, d.Blast)
	say("")
	if d.Unavailable != "" {
		say("It was not run: %s.", d.Unavailable)
		return
	}
	for _, f := range d.Findings {
		say("- **Not held:** %s", f)
	}
	say("- RTO %.0f ms%s: %s.", d.RTO, limit(d.Limits.RTO, "%.0f ms"), d.Recover)
	say("- %d requests: %d right, %d refused by design, %d failed%s, %d of unknown outcome%s; %d went to another node than the first.", d.Counts.Requests, d.Counts.OK, d.Closed,
		d.Failed, most(d.Limits.Failed), d.Unknown, most(d.Limits.Unknown), d.Counts.Next)
	say("- %d wrong decisions. Longest time without a right answer: %.0f ms.", d.Wrong, d.Gap)
	say("- %d executions at the server. %d answers held against the audit log: %d without a record, %d with more than one.", d.Executions, d.Answers, d.Lost, d.Doubled)
	say("- %d policy changes, %d of them not acknowledged by all%s; the slowest took %.0f ms to the last node that was waited for, some of which were away.", d.Counts.Changes, d.Counts.FailedChanges,
		most(d.Limits.Changes), d.Stale)
	for _, name := range slices.Sorted(maps.Keys(d.Facts)) {
		say("- %s: %.0f", strings.ReplaceAll(name, "_", " "), d.Facts[name])
	}
	for _, why := range slices.Sorted(maps.Keys(d.Errors)) {
		say("- %d times: %s", d.Errors[why], cell(why))
	}
	say("")
	say("| phase | seconds | requests | not right | p50 ms | p99 ms |\n|---|---|---|---|---|---|")
	for _, p := range []struct {
		name string
		Phase
	}{{"before", d.Before}, {"during", d.During}, {"after", d.After}} {
		say("| %s | %.1f | %d | %d | %.2f | %.2f |", p.name, p.Seconds, p.Requests, p.NotOK, p.P50, p.P99)
	}
	say("")
	for _, e := range d.Timeline {
		say("- %6.2f s  %s", e.Seconds, cell(e.What))
	}
	for _, w := range d.Wrongs {
		say("- wrong at %s: %s: %s", w.At.UTC().Format("15:04:05.000"), w.Kind, cell(w.What))
	}
}

// Table is the degradation table: what works when a thing is lost, with what the drill measured.
func (r *Run) Table() []byte {
	var b strings.Builder
	b.WriteString("| lost | still works | until | measured by | RTO | failed / unknown of requests | wrong | lost records | p99 before / during |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, d := range r.Drills {
		if d.Unavailable != "" {
			continue
		}
		rto := "-"
		if d.RTO > 0 {
			rto = fmt.Sprintf("%.1f s", d.RTO/1000)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | `%s`%s | %s | %d / %d of %d | %d | %d | %.1f / %.1f ms |\n", cell(d.Loses), cell(d.Works), cell(d.Until), d.Name, mark(d.Passed), rto,
			d.Failed, d.Unknown, d.Counts.Requests, d.Wrong, d.Lost, d.Before.P99, d.During.P99)
	}
	return []byte(b.String())
}

func mark(passed bool) string {
	if passed {
		return ""
	}
	return " (**did not pass**)"
}

func verdict(passed bool) string {
	if passed {
		return "passed"
	}
	return "NOT PASSED"
}

func limit(v float64, format string) string {
	if v <= 0 {
		return ""
	}
	return fmt.Sprintf(" (at most "+format+")", v)
}

func most(n int) string {
	if n < 0 {
		return ""
	}
	return fmt.Sprintf(" (at most %d)", n)
}

// cell keeps text in its place: it may come from a server.
func cell(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "\r", " ", "<", "&lt;").Replace(s)
}
