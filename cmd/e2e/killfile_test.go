package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAKillFileReachesACellThatIsCutOff has a cell without a control plane and without a quorum told of a kill by hand.
func TestAKillFileReachesACellThatIsCutOff(t *testing.T) {
	t.Parallel()
	d := start(t, "--nodes", "5")
	erin, _ := person(t, d, "erin")
	out, _ := must(t, d, 0, "org", "list", "-o", "json")
	var orgs []struct{ ID, Name string }
	if err := json.Unmarshal([]byte(out), &orgs); err != nil {
		t.Fatal(err)
	}
	tenant := ""
	for _, o := range orgs {
		if o.Name == "acme" {
			tenant = o.ID
		}
	}
	kill(t, d.PIDs.ControlPlane)
	for _, pid := range d.PIDs.Nodes[2:] {
		kill(t, pid)
	}
	echo := func(node int) string {
		got, _ := outcome(d, node, erin, "demo", "echo", `{"message":"hi"}`)
		return got
	}
	for node := range 2 {
		if got := echo(node); got != "ok" {
			t.Fatalf("before the kill n%d says %s", node+1, got)
		}
	}
	eventually(t, "nobody leads", func() bool { return leads(t, d) < 0 })

	file := filepath.Join(t.TempDir(), "erin.kills")
	must(t, d, 0, "kill", "sign", "user", "erin", "--key", filepath.Join(d.Dir, "keys", "kill.key"), "--tenant-id", tenant, "--out", file)
	data := filepath.Join(d.Dir, "data", "local-n1")
	began := time.Now()
	must(t, d, 0, "kill", "deliver", file, "--data-dir", data)
	if got := echo(0); got != "unauthorized" {
		t.Errorf("n1 has taken the file and says %s", got)
	}
	t.Logf("in force on n1 after %s", time.Since(began).Round(time.Millisecond))
	eventually(t, "its peer refuses erin too", func() bool { return echo(1) == "unauthorized" })
	t.Logf("in force on n2 after %s", time.Since(began).Round(time.Millisecond))

	// What is not signed by a key that the roots name is refused, and says so.
	foreign := filepath.Join(t.TempDir(), "b.key")
	must(t, d, 0, "trust", "keygen", foreign)
	must(t, d, 0, "kill", "sign", "user", "alice", "--key", foreign, "--tenant-id", tenant, "--out", file+".2")
	must(t, d, 4, "kill", "deliver", file+".2", "--data-dir", data)
	if got, _ := outcome(d, 0, d.Tokens["alice"], "demo", "echo", `{"message":"hi"}`); got != "ok" {
		t.Errorf("alice is %s", got)
	}
	// It outlives a restart of the node that was told, alone.
	kill(t, d.PIDs.Nodes[0])
	kill(t, d.PIDs.Nodes[1])
	restart(t, d, "n1")
	eventually(t, "n1 answers again, and refuses erin", func() bool { return echo(0) == "unauthorized" })
	if _, err := os.Stat(filepath.Join(data, "kills")); err != nil {
		t.Error(err)
	}
}
