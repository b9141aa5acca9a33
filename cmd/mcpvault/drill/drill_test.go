package drill_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/drill/report"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/catalog"
)

// desk is a directory with a file of contexts: prod, which nobody answers for.
func desk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	f := &contexts.File{}
	f.Set("prod", &contexts.Context{AdminURL: "http://127.0.0.1:1", AdminToken: "t", Tenant: "acme"})
	if err := contexts.Save(filepath.Join(dir, "config.yaml"), f); err != nil {
		t.Fatal(err)
	}
	return dir
}

// typed runs a command and demands the exit status.
func typed(t *testing.T, dir string, want int, line string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	got := cli.Run(t.Context(), cli.Config{
		Args: strings.Fields(line), Env: []string{"HOME=" + dir, "MCPVAULT_CONFIG=" + filepath.Join(dir, "config.yaml")}, Stdout: &out, Stderr: &errs, Dir: dir, Version: "test",
		Commands: []func(*cli.App) *cobra.Command{drill.Command},
	})
	if got != want {
		t.Fatalf("mcpvault %s: exit status %d, want %d\n%s%s", line, got, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func TestListNamesEveryDrill(t *testing.T) {
	t.Parallel()
	out, _ := typed(t, desk(t), 0, "drill list -o json")
	var rows []struct {
		Name, Breaks string
		Blast        string `json:"blast_radius"`
		Recovers     string
	}
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != len(catalog.All()) {
		t.Errorf("%d drills are listed, there are %d", len(rows), len(catalog.All()))
	}
	for _, r := range rows {
		if r.Name == "" || r.Breaks == "" || r.Blast == "" || r.Recovers == "" {
			t.Errorf("%+v says too little", r)
		}
	}
	for _, name := range []string{"control-plane-loss", "postgres-loss", "leader-kill", "node-loss", "quorum-loss", "cell-loss", "bad-snapshot", "rollback-attack", "cold-boot"} {
		if _, ok := catalog.Find(name); !ok {
			t.Errorf("there is no drill %s", name)
		}
	}
}

func TestEveryDrillSaysWhatItPromisesAndCanBeMended(t *testing.T) {
	t.Parallel()
	var names []string
	for _, d := range catalog.All() {
		if d.Break == nil || d.Mend == nil || d.Lost == "" || d.Works == "" || d.Until == "" || len(d.Needs) == 0 || d.Limits.RTO < 0 {
			t.Errorf("%s is not complete", d.Name)
		}
		if slices.Contains(names, d.Name) {
			t.Errorf("%s is there twice", d.Name)
		}
		names = append(names, d.Name)
	}
}

func TestADryRunDoesNothing(t *testing.T) {
	t.Parallel()
	dir := desk(t)
	begin := time.Now()
	out, _ := typed(t, dir, 0, "drill run --all --dry-run -o json --abort-after 7 --load 400/s --for 20s")
	var plans []struct {
		Name  string
		Where string
		Load  string
		Abort string   `json:"abort_condition"`
		Blast string   `json:"blast_radius"`
		Pass  []string `json:"passes_if"`
	}
	if err := json.Unmarshal([]byte(out), &plans); err != nil {
		t.Fatal(err)
	}
	for _, p := range plans {
		if p.Blast == "" || p.Abort != "more than 7 failed calls, or one wrong decision" || !strings.Contains(p.Load, "400 decisions/s, 20 calls/s, 2.0 policy changes/s for 20s") ||
			!slices.Contains(p.Pass, "0 wrong decisions") || !slices.Contains(p.Pass, "0 lost audit records") {
			t.Errorf("%+v", p)
		}
		if cells := strings.Contains(p.Where, "--cells 2"); cells != (p.Name == "cell-loss") {
			t.Errorf("%s runs in %s", p.Name, p.Where)
		}
	}
	if len(plans) != len(catalog.All()) || time.Since(begin) > 5*time.Second {
		t.Errorf("%d plans after %s", len(plans), time.Since(begin))
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("it has left %v, %v", left, err)
	}
	if out, _ := typed(t, dir, 0, "drill run leader-kill --dry-run"); !strings.Contains(out, "who notices:") || !strings.Contains(out, "never: nobody else uses it") {
		t.Errorf("%s", out)
	}
}

func TestAnInstallationThatWasAskedForIsBrokenOnlyWithConsentAndABudget(t *testing.T) {
	t.Parallel()
	dir := desk(t)
	for line, want := range map[string]string{
		"drill run leader-kill --context prod":                         "nobody has said yes",
		"drill run leader-kill --context prod --abort-after 5":         "nobody has said yes",
		"drill run --all --context prod --yes":                         "needs an abort budget",
		"drill run leader-kill --addr http://127.0.0.1:1 --yes":        "needs an abort budget",
		"drill run leader-kill --addr http://127.0.0.1:1 -o json":      "nobody has said yes",
		"drill run leader-kill --context prod --yes --abort-after=-3":  "needs an abort budget",
		"drill run leader-kill --context prod --yes --abort-after=-10": "needs an abort budget",
	} {
		if _, errs := typed(t, dir, 4, line); !strings.Contains(errs, want) {
			t.Errorf("%s: %s", line, errs)
		}
	}
	// With both it goes there, and finds nobody.
	typed(t, dir, 7, "drill run leader-kill --context prod --yes --abort-after 5")
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	t.Parallel()
	dir := desk(t)
	for line, want := range map[string]int{
		"drill run":                         2,
		"drill run leader-kill --all":       2,
		"drill run no-such-drill":           3,
		"drill run --all --skip nothing":    3,
		"drill run leader-kill --load many": 2,
		"drill run leader-kill --load NaN":  2,
		"drill run leader-kill --load 0":    2,
		"drill run leader-kill --for 1s":    2,
		"drill report show":                 3,
		"drill report show nothing":         3,
		"drill report verify nothing.json":  3,
	} {
		typed(t, dir, want, line)
	}
}

func TestReportsAreListedShownAndVerified(t *testing.T) {
	t.Parallel()
	dir := desk(t)
	k, err := report.Key(filepath.Join(dir, "drill.key"))
	if err != nil {
		t.Fatal(err)
	}
	r := &report.Run{Form: report.Form, Started: time.Now().UTC(), Load: load.Full, Drills: []report.Drill{{Name: "leader-kill", Passed: true, RTO: 700, Loses: "leader", Works: "all", Until: "soon", Findings: []string{}}}}
	for _, name := range []string{"20270101T000000Z", "20270102T000000Z"} {
		if err := r.Write(filepath.Join(dir, "drills", name), k); err != nil {
			t.Fatal(err)
		}
		r.Drills[0].RTO++
	}
	if out, _ := typed(t, dir, 0, "drill report list -o name"); out != "20270101T000000Z\n20270102T000000Z\n" {
		t.Errorf("listed %s", out)
	}
	out, _ := typed(t, dir, 0, "drill report show -o json")
	if want := "{\n  \"drills\": [\n    {\n      \"name\": \"leader-kill\",\n      \"passed\": true,\n      \"rto_ms\": 701,\n      \"failed_calls\": 0,\n      \"wrong_decisions\": 0,\n      \"lost_records\": 0,"; !strings.HasPrefix(out, want) {
		t.Errorf("the newest is shown as %s", out)
	}
	if out, _ := typed(t, dir, 0, "drill report table 20270101T000000Z"); !strings.Contains(out, "| leader | all | soon | `leader-kill` | 0.7 s |") {
		t.Errorf("%s", out)
	}
	file := filepath.Join("drills", "20270101T000000Z", report.MarkdownFile)
	typed(t, dir, 0, "drill report verify "+file)
	typed(t, dir, 4, "drill report verify "+file+" --key AAAA")
	if err := os.WriteFile(filepath.Join(dir, file), []byte("all well"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs := typed(t, dir, 4, "drill report verify "+file); !strings.Contains(errs, "not what was signed") {
		t.Errorf("%s", errs)
	}
	if err := os.Remove(filepath.Join(dir, "drills", "20270101T000000Z", report.SignatureFile)); err != nil {
		t.Fatal(err)
	}
	if _, errs := typed(t, dir, 4, "drill report verify "+file); !strings.Contains(errs, "no signature") {
		t.Errorf("%s", errs)
	}
}
