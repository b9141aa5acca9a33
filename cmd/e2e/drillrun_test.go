package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
	"github.com/mcpvault/mcpvault/bench/drill/report"
)

// TestEveryDrillHolds runs the short form of every drill on installations of its own. On a machine that is busy with other tests only
// safety is asserted: no wrong decision, no lost record, no call that fails while something is there to answer it. How long things
// take is for `make drill`.
func TestEveryDrillHolds(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("it takes some minutes")
	}
	bin := buildBinary(t)
	one.Lock()
	defer one.Unlock()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, "drill", "run", "--all", "--for", "2s", "--load", "100", "-o", "json")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "MCPVAULT_CONFIG="+filepath.Join(dir, "config.yaml"))
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var got struct {
		Drills []report.Drill
		Passed bool
		Report string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, errs.String())
	}
	if got.Passed != (err == nil) {
		t.Errorf("passed is %t, and the command ended with %v", got.Passed, err)
	}
	full, err := report.Read(filepath.Join(got.Report, report.JSONFile))
	if err != nil {
		t.Fatal(err)
	}
	if len(full.Drills) != len(got.Drills) || len(full.Drills) == 0 {
		t.Fatalf("%d drills are in the report, %d were printed\n%s", len(full.Drills), len(got.Drills), errs.String())
	}
	for _, d := range full.Drills {
		if d.Name == "rollback-attack" && d.Wrong > 0 {
			// Known and open (README, "Not there yet"): a restored database that is a change or two behind can overtake its cells.
			t.Logf("rollback-attack did not hold: %d wrong, %v", d.Wrong, d.Findings)
			continue
		}
		// A disk that is busy with other tests may be too slow for an intent: such a call is refused, as it has to be.
		failed := d.Failed - d.Errors["200 audit_unavailable"]
		if d.Wrong > 0 || d.Lost > 0 || d.Doubled > 0 || failed > d.Limits.Failed && d.Limits.Failed >= 0 || d.Unavailable != "" || d.Aborted != "" || d.Counts.OK == 0 || d.Executions == 0 {
			t.Errorf("%s: %v\nwrong: %v\nerrors: %v\ntimeline: %v", d.Name, d.Findings, d.Wrongs, d.Errors, d.Timeline)
		}
		t.Logf("%-20s passed %t, RTO %.0f ms, %d requests, %d failed, %d unknown, %.0f s", d.Name, d.Passed, d.RTO, d.Counts.Requests, d.Failed, d.Unknown, d.Seconds)
	}
	if t.Failed() {
		t.Log(errs.String())
	}
}

// drillsInPlace breaks the installation of a context, which must be in order afterwards.
func drillsInPlace(t *testing.T, d *devrun.Dev) {
	reports := t.TempDir()
	short := []string{"--for", "2s", "--load", "400", "--reports", reports, "-o", "json", "--context", "dev"}
	if _, errs := must(t, d, 4, slices.Concat([]string{"drill", "run", "node-loss"}, short)...); !strings.Contains(errs, "nobody has said yes") {
		t.Errorf("without consent: %s", errs)
	}
	if out, _ := must(t, d, 0, "drill", "run", "node-loss", "--dry-run", "--context", "dev", "--abort-after", "9"); !strings.Contains(out, "more than 9 failed calls") ||
		!strings.Contains(out, "installation of a context, 1 cell(s), 3 nodes") {
		t.Errorf("a dry run: %s", out)
	}
	agreed := func(name, budget string, more ...string) []string {
		return slices.Concat([]string{"drill", "run", name, "--yes", "--abort-after", budget}, short, more)
	}
	out, errs, _ := cli(t, d, agreed("node-loss", "5")...)
	var got struct{ Drills []report.Drill }
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got.Drills) != 1 {
		t.Fatalf("%v\n%s%s", err, out, errs)
	}
	if r := got.Drills[0]; r.Failed > 0 || r.Wrong > 0 || r.Lost > 0 {
		t.Errorf("node-loss: %+v\n%s", r, errs)
	}
	// Everybody is dead for a moment: that is more than the budget.
	out, _ = must(t, d, 1, agreed("cold-boot", "0")...)
	if !strings.Contains(out, "aborted: ") || !strings.Contains(out, "more than the 0 of the budget") {
		t.Errorf("cold-boot was not aborted: %s", out)
	}
	if err := d.Reload(); err != nil {
		t.Fatal(err)
	}
	wantRight(t, d, 0, 1, 2)
	if out, _ := must(t, d, 0, "server", "list", "-o", "name"); strings.Contains(out, "drill-canary") {
		t.Errorf("the canary is still registered: %s", out)
	}

	// The same installation, when all that is known of it are its addresses.
	elsewhere := filepath.Join(t.TempDir(), "config.yaml")
	raw, err := os.ReadFile(filepath.Join(d.Dir, "cli.yaml"))
	if err == nil {
		err = os.WriteFile(elsewhere, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := must(t, d, 7, agreed("node-loss", "5", "--config", elsewhere)...); !strings.Contains(out, "its processes must be ours to kill and start") {
		t.Errorf("a drill that cannot be run: %s", out)
	}
}
