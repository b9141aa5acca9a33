package report_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/bench/drill/report"
)

func run() *report.Run {
	return &report.Run{
		Form: report.Form, Started: time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 60, Version: "v1", Installation: "private", Machine: "2 x CPU", Load: load.Full,
		Drills: []report.Drill{
			{
				Name: "leader-kill", Passed: true, RTO: 812.4, Unknown: 2, Loses: "leader", Works: "everything", Until: "a new one", Findings: []string{},
				Counts: load.Counts{Requests: 1000, OK: 998, Unknown: 2}, Before: report.Phase{P99: 2.5}, During: report.Phase{P99: 3.5},
				Facts: map[string]float64{"election_ms": 800}, Timeline: []report.Event{{Seconds: 1, What: "local/n1 leads"}},
			},
			{
				Name: "node-loss", Wrong: 1, Lost: 3, Findings: []string{"1 decisions were wrong", "3 answers are not on record"}, Loses: "a node", Works: "all", Until: "-",
				Wrongs: []judge.Wrong{{Kind: judge.WrongAllow, What: "ann | may\ncall <b>"}},
			},
			{Name: "disk-full", Unavailable: "it must be one that dev runs", Findings: []string{}},
		},
	}
}

func key(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	k, err := report.Key(filepath.Join(t.TempDir(), "sub", "drill.key"))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestProgramsReadSixKeysFirst(t *testing.T) {
	t.Parallel()
	raw, err := json.Marshal(run())
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"drills":[{"name":"leader-kill","passed":true,"rto_ms":812.4,"failed_calls":0,"wrong_decisions":0,"lost_records":0,`
	if !bytes.HasPrefix(raw, []byte(want)) {
		t.Errorf("%.200s", raw)
	}
}

func TestARunPassesOnlyIfEveryDrillDid(t *testing.T) {
	t.Parallel()
	r := run()
	if r.Passed() {
		t.Error("one did not pass, and the run did")
	}
	r.Drills = r.Drills[:1]
	if !r.Passed() {
		t.Error("all passed, and the run did not")
	}
	r.Drills = append(r.Drills, run().Drills[2])
	if r.Passed() {
		t.Error("one was not run, and the run passed")
	}
	if (&report.Run{}).Passed() {
		t.Error("nothing was run, and the run passed")
	}
}

func TestASignedReportVerifiesAndReadsBack(t *testing.T) {
	t.Parallel()
	dir, k := filepath.Join(t.TempDir(), "r"), key(t)
	if err := run().Write(dir, k); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{report.JSONFile, report.MarkdownFile, report.JUnitFile} {
		signed, by, err := report.Verify(filepath.Join(dir, name), "another", report.PublicKey(k))
		if err != nil || by != report.PublicKey(k) || time.Since(signed) > time.Minute {
			t.Errorf("%s: %v, signed %s with %s", name, err, signed, by)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	got, err := report.Read(filepath.Join(dir, report.JSONFile))
	if err != nil || len(got.Drills) != 3 || got.Drills[0].RTO != 812.4 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestEveryAlterationOfAReportIsFound(t *testing.T) {
	t.Parallel()
	k := key(t)
	for name, alter := range map[string]func(dir string) error{
		"a figure is improved": func(dir string) error {
			return edit(filepath.Join(dir, report.JSONFile), `"lost_records": 3`, `"lost_records": 0`)
		},
		"the signature's digest follows": func(dir string) error {
			file := filepath.Join(dir, report.JSONFile)
			old, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := os.WriteFile(file, append(old, '\n'), 0o600); err != nil {
				return err
			}
			return edit(filepath.Join(dir, report.SignatureFile), `"report.json": "`, `"report.json": "00`)
		},
		"the date is another": func(dir string) error {
			return edit(filepath.Join(dir, report.SignatureFile), `"signed": "20`, `"signed": "19`)
		},
		"the signature is of another report": func(dir string) error {
			other := run()
			other.Seconds++
			if err := other.Write(filepath.Join(dir, "other"), k); err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir, "other", report.SignatureFile), filepath.Join(dir, report.SignatureFile))
		},
	} {
		dir := t.TempDir()
		if err := run().Write(dir, k); err != nil {
			t.Fatal(err)
		}
		if err := alter(dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := report.Verify(filepath.Join(dir, report.JSONFile), report.PublicKey(k)); !errors.Is(err, report.ErrAltered) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func edit(file, from, to string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Contains(b, []byte(from)) {
		return errors.New("nothing to alter")
	}
	return os.WriteFile(file, bytes.Replace(b, []byte(from), []byte(to), 1), 0o600)
}

func TestAReportOfSomebodyElseIsNotBelieved(t *testing.T) {
	t.Parallel()
	dir, theirs := t.TempDir(), key(t)
	if err := run().Write(dir, theirs); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, report.MarkdownFile)
	if _, by, err := report.Verify(file, report.PublicKey(key(t))); !errors.Is(err, report.ErrUnknownKey) || by != report.PublicKey(theirs) {
		t.Errorf("%v, by %s", err, by)
	}
	if err := os.Remove(filepath.Join(dir, report.SignatureFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := report.Verify(file, report.PublicKey(theirs)); !errors.Is(err, report.ErrUnsigned) {
		t.Errorf("without a signature: %v", err)
	}
}

func TestAKeyIsMadeOnceAndKeptFromOthers(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "drill.key")
	first, err := report.Key(file)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := report.Key(file); err != nil || !again.Equal(first) {
		t.Errorf("the second time: another key, %v", err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := report.Key(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	for _, content := range []string{"", "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		bad := filepath.Join(t.TempDir(), "bad.key")
		if err := os.WriteFile(bad, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := report.Key(bad); err == nil {
			t.Errorf("%q is taken for a key", content)
		}
	}
}

func TestMarkdownKeepsTextInItsPlace(t *testing.T) {
	t.Parallel()
	md := string(run().Markdown())
	for _, part := range []string{
		"# Drills: NOT PASSED", "| leader-kill | passed | 812 |", "| disk-full | not run: it must be one that dev runs |", "**Not held:** 1 decisions were wrong",
		`ann \| may call &lt;b>`, "1.00 s  local/n1 leads", "election ms: 800",
	} {
		if !strings.Contains(md, part) {
			t.Errorf("%q is missing in\n%s", part, md)
		}
	}
}

func TestTheDegradationTableHasARowForEachDrillThatWasRun(t *testing.T) {
	t.Parallel()
	table := string(run().Table())
	rows := strings.Split(strings.TrimSpace(table), "\n")
	if len(rows) != 4 || rows[2] != "| leader | everything | a new one | `leader-kill` | 0.8 s | 0 / 2 of 1000 | 0 | 0 | 2.5 / 3.5 ms |" || !strings.Contains(rows[3], "**did not pass**") {
		t.Errorf("%s", table)
	}
}

func TestJUnitCountsFailedAndSkippedDrills(t *testing.T) {
	t.Parallel()
	raw, err := run().JUnit()
	if err != nil {
		t.Fatal(err)
	}
	var suite struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Skipped  int `xml:"skipped,attr"`
		Cases    []struct {
			Name    string `xml:"name,attr"`
			Failure *struct {
				Message string `xml:"message,attr"`
			} `xml:"failure"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(raw, &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Tests != 3 || suite.Failures != 1 || suite.Skipped != 1 || suite.Cases[0].Failure != nil || suite.Cases[1].Failure == nil ||
		!strings.Contains(suite.Cases[1].Failure.Message, "3 answers are not on record") {
		t.Errorf("%+v", suite)
	}
}

func TestOnlyReportsAreRead(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"", "[]", `{"form": 99}`} {
		file := filepath.Join(t.TempDir(), report.JSONFile)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := report.Read(file); err == nil {
			t.Errorf("%q is read", content)
		}
	}
}
