package drill

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/report"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
)

// view shows on stderr how a drill is doing: on a terminal in one line that is written again and again, elsewhere in a line every few
// seconds.
type view struct {
	app      *cli.App
	terminal bool
	// colour is off when NO_COLOR is set or nobody looks.
	mu    sync.Mutex // Guards what is below.
	open  bool       // The line on the terminal is not ended.
	shown time.Time
}

// quietEvery is how often a line is written where no terminal is.
const quietEvery = 5 * time.Second

func newView(a *cli.App) *view {
	f, ok := a.World().Stderr.(*os.File)
	terminal := false
	if ok {
		info, err := f.Stat()
		terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return &view{app: a, terminal: terminal && !a.Quiet()}
}

// tell writes a line that stays.
func (v *view) tell(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.clear()
	v.app.Notef("%s  %s", time.Now().UTC().Format("15:04:05.000"), output.Clean(fmt.Sprintf(format, args...)))
}

// clear takes the figures off the terminal. Callers hold mu.
func (v *view) clear() {
	if v.open {
		_, _ = fmt.Fprint(v.app.World().Stderr, "\r\x1b[K") // Nobody is left to tell.
		v.open = false
	}
}

func (v *view) live(f rehearse.Figures) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.terminal {
		if time.Since(v.shown) >= quietEvery {
			v.shown = time.Now()
			v.app.Notef("%s", figures(f))
		}
		return
	}
	v.clear()
	_, _ = fmt.Fprint(v.app.World().Stderr, figures(f)) // Nobody is left to tell.
	v.open = true
}

// figures are one line.
func figures(f rehearse.Figures) string {
	rto := ""
	switch {
	case f.Recovered:
		rto = fmt.Sprintf("  RTO %.1f s", f.Away.Seconds())
	case f.Broken:
		rto = fmt.Sprintf("  away %.1f s", f.Away.Seconds())
	}
	return fmt.Sprintf("%s %3.0f s  ok %d  failed %d  unknown %d  closed %d  wrong %d%s  policy change to last node at most %d ms",
		f.Drill, f.Elapsed.Seconds(), f.OK, f.Failed, f.Unknown, f.Closed, f.Wrong, rto, f.Stale.Milliseconds())
}

// result is one drill as it is printed; the first six keys are for programs and stay.
type result struct {
	Name        string   `json:"name"`
	Passed      bool     `json:"passed"`
	RTO         float64  `json:"rto_ms"`
	Failed      int      `json:"failed_calls"`
	Wrong       int      `json:"wrong_decisions"`
	Lost        int      `json:"lost_records"`
	Unknown     int      `json:"unknown_calls"`
	Requests    int      `json:"requests"`
	P99         phases   `json:"p99_ms"`
	Findings    []string `json:"findings"`
	Unavailable string   `json:"unavailable,omitempty"`
}

type phases struct {
	Before float64 `json:"before"`
	During float64 `json:"during"`
	After  float64 `json:"after"`
}

// results are what a run prints.
type results struct {
	Drills  []result `json:"drills"`
	Passed  bool     `json:"passed"`
	Seconds float64  `json:"seconds"`
	// Report is the directory in which the report is.
	Report string `json:"report,omitempty"`
}

// show prints a run.
func show(a *cli.App, r *report.Run, dir string) error {
	rows := output.Map(r.Drills, func(d report.Drill) result {
		return result{
			d.Name, d.Passed, d.RTO, d.Failed, d.Wrong, d.Lost, d.Unknown, d.Counts.Requests, phases{d.Before.P99, d.During.P99, d.After.P99}, d.Findings, d.Unavailable,
		}
	})
	if f := a.Format(); f == output.JSON || f == output.YAML {
		return output.Value(a.World().Stdout, f, results{rows, r.Passed(), r.Seconds, dir})
	}
	err := cli.PrintList(a, rows,
		output.Column[result]{Head: "DRILL", Cell: func(v result) string { return v.Name }},
		output.Column[result]{Head: "PASSED", Cell: passed},
		output.Column[result]{Head: "RTO", Cell: func(v result) string { return fmt.Sprintf("%.0f ms", v.RTO) }},
		output.Column[result]{Head: "FAILED", Cell: func(v result) string { return fmt.Sprint(v.Failed) }},
		output.Column[result]{Head: "UNKNOWN", Cell: func(v result) string { return fmt.Sprint(v.Unknown) }},
		output.Column[result]{Head: "WRONG", Cell: func(v result) string { return fmt.Sprint(v.Wrong) }},
		output.Column[result]{Head: "LOST RECORDS", Cell: func(v result) string { return fmt.Sprint(v.Lost) }},
		output.Column[result]{Head: "P99 BEFORE/DURING/AFTER", Cell: func(v result) string {
			return fmt.Sprintf("%.1f/%.1f/%.1f ms", v.P99.Before, v.P99.During, v.P99.After)
		}},
		output.Column[result]{Head: "REQUESTS", Cell: func(v result) string { return fmt.Sprint(v.Requests) }, Wide: true},
		output.Column[result]{Head: "FINDINGS", Cell: func(v result) string { return strings.Join(v.Findings, "; ") }, Wide: true})
	if err != nil {
		return err
	}
	for _, v := range rows {
		for _, f := range v.Findings {
			a.Warnf("%s: %s", v.Name, output.Clean(f))
		}
		if v.Unavailable != "" {
			a.Notef("%s was not run: %s", v.Name, v.Unavailable)
		}
	}
	if dir != "" {
		a.Notef("the report is in %s", dir)
	}
	return nil
}

func passed(r result) string {
	if r.Unavailable != "" {
		return "not run"
	}
	return output.YesNo(r.Passed)
}
