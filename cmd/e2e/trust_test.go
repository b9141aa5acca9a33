package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// load calls a tool on every node until it is stopped, and counts what was not answered as it should be.
func load(d *devrun.Dev) (stop func() (calls int64, wrong []string)) {
	var n atomic.Int64
	var mu sync.Mutex
	var wrong []string
	end := make(chan struct{})
	var wg sync.WaitGroup
	for node := range d.MCPURLs {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				case <-time.After(10 * time.Millisecond):
				}
				n.Add(1)
				if got, _ := outcome(d, node, d.Tokens["alice"], "demo", "echo", `{"message":"hi"}`); got != "ok" {
					mu.Lock()
					wrong = append(wrong, fmt.Sprintf("n%d: %s", node+1, got))
					mu.Unlock()
				}
			}
		})
	}
	return func() (int64, []string) {
		close(end)
		wg.Wait()
		return n.Load(), wrong
	}
}

// holders are the root holders of one installation; their keys lie in its keys directory, as in every dev one.
type holders struct {
	t    *testing.T
	d    *devrun.Dev
	work string
}

func (h holders) key(name string) string  { return filepath.Join(h.d.Dir, "keys", name+".key") }
func (h holders) file(name string) string { return filepath.Join(h.work, name) }

func (h holders) keygen(name string) (id string) {
	h.t.Helper()
	out, _ := must(h.t, h.d, 0, "trust", "keygen", h.key(name), "-o", "json")
	var key struct{ ID string }
	if err := json.Unmarshal([]byte(out), &key); err != nil {
		h.t.Fatal(err)
	}
	return key.ID
}

// agree proposes the next roots, has two of three holders sign, and installs them in the running control plane.
func (h holders) agree(version int, changes ...[]string) {
	h.t.Helper()
	name := func(s string) string { return h.file(fmt.Sprintf("%d-%s", version, s)) }
	proposal, roots := name("proposal.json"), filepath.Join(h.d.Dir, "keys", fmt.Sprintf("roots-%d.pb", version-1))
	must(h.t, h.d, 0, "trust", "propose", "--roots", roots, "--out", proposal)
	for _, c := range changes {
		must(h.t, h.d, 0, append([]string{"trust", c[0], proposal}, c[1:]...)...)
	}
	var sigs []string
	for _, root := range []string{"root-1", "root-3"} {
		sigs = append(sigs, name(root+".sig"))
		must(h.t, h.d, 0, "trust", "sign", proposal, "--roots", roots, "--key", h.key(root), "--out", name(root+".sig"))
	}
	must(h.t, h.d, 4, "trust", "assemble", proposal, sigs[0], "--roots", roots, "--out", name("one.pb"))
	must(h.t, h.d, 0, append([]string{"trust", "assemble", proposal, "--roots", roots, "--out", name("roots.pb")}, sigs...)...)
	must(h.t, h.d, 0, "trust", "install", name("roots.pb"))
}

// brokenGlass signs a kill with no network, and hands it to the control plane afterwards.
func (h holders) brokenGlass(key string) {
	h.t.Helper()
	erin, _ := person(h.t, h.d, "erin")
	out, _ := must(h.t, h.d, 0, "org", "list", "-o", "json")
	var orgs []struct{ ID, Name string }
	if err := json.Unmarshal([]byte(out), &orgs); err != nil {
		h.t.Fatal(err)
	}
	at := slices.IndexFunc(orgs, func(o struct{ ID, Name string }) bool { return o.Name == "acme" })
	if at < 0 {
		h.t.Fatalf("no acme in %s", out)
	}
	file := h.file("erin.kills")
	must(h.t, h.d, 0, "kill", "sign", "user", "erin", "--key", key, "--tenant-id", orgs[at].ID, "--reason", "laptop stolen", "--out", file)
	must(h.t, h.d, 0, "kill", "inspect", file)
	must(h.t, h.d, 0, "kill", "import", file)
	eventually(h.t, "the kill from the file is in force everywhere", func() bool {
		for node := range h.d.MCPURLs {
			if got, _ := outcome(h.d, node, erin, "demo", "echo", `{"message":"hi"}`); got != "unauthorized" {
				return false
			}
		}
		return true
	})
}

type trusted struct {
	Node      string            `json:"node"`
	Roots     uint64            `json:"roots_version"`
	Applied   map[string]string `json:"applied"`
	Confirmed map[string]string `json:"confirmed"`
	Connected bool              `json:"connected"`
}

// everywhere waits until every node believes the roots and says that each tenant was confirmed after a time.
func everywhere(t *testing.T, d *devrun.Dev, version uint64, after time.Time) {
	t.Helper()
	eventually(t, fmt.Sprintf("every node believes roots %d and serves what they confirm", version), func() bool {
		out, _, _ := cli(t, d, "cell", "status", "-o", "json")
		var all []trusted
		if json.Unmarshal([]byte(out), &all) != nil || len(all) != 3 {
			return false
		}
		for _, n := range all {
			if n.Roots != version || len(n.Confirmed) == 0 {
				return false
			}
			for _, at := range n.Confirmed {
				if c, err := time.Parse(time.RFC3339, at); err != nil || c.Before(after.Add(-time.Second)) {
					return false
				}
			}
		}
		return true
	})
}

func TestEveryOnlineKeyIsReplacedWhileCallsRun(t *testing.T) {
	t.Parallel()
	d := start(t)
	h := holders{t, d, t.TempDir()}
	carol, _ := person(t, d, "carol")
	out, _ := must(t, d, 0, "kill", "user", "carol", "--reason", "stolen laptop", "-o", "json")
	if !strings.Contains(out, `"waiting": []`) || strings.Count(out, `"node"`) != 3 {
		t.Errorf("the kill does not say which nodes enforce it: %s", out)
	}
	if _, errs := must(t, d, 0, "kill", "session", "00"); !strings.Contains(errs, "enforced by 3 of 3 nodes: ") {
		t.Errorf("the kill does not say how soon: %s", errs)
	} else {
		t.Log(strings.TrimSpace(errs))
	}
	stop := load(d)

	before := time.Now()
	old := signing(t, d)
	var add, remove [][]string
	for i, role := range []string{"head", "heartbeat", "kill"} {
		id := h.keygen(role + "-2")
		add = append(add, []string{"add-key", role, h.key(role+"-2") + ".pub"})
		remove = append(remove, []string{"remove-key", old[i]})
		if id == old[i] {
			t.Fatal("the new key is the old one")
		}
	}
	glass := h.file("glass.key")
	must(t, d, 0, "trust", "keygen", glass)
	h.agree(2, append(add, []string{"add-key", "kill", glass + ".pub"})...)
	everywhere(t, d, 2, before)
	now := signing(t, d)
	for i := range old {
		if now[i] == old[i] {
			t.Errorf("key %s still signs", old[i])
		}
	}
	// Whatever the old keys have signed is signed anew by now, or will never be believed again.
	eventually(t, "everything is signed anew", func() bool {
		out, _, status := cli(t, d, "kill", "list", "-o", "json")
		_, _, verified := cli(t, d, "snapshot", "verify")
		return status == 0 && verified == 0 && strings.Contains(out, "carol")
	})
	h.brokenGlass(glass)
	time.Sleep(2 * time.Second) // a look at the tables and a heartbeat
	dropped := time.Now()
	h.agree(3, remove...)
	for _, role := range []string{"head", "heartbeat", "kill"} {
		if err := os.Remove(h.key(role)); err != nil {
			t.Error(err)
		}
	}
	everywhere(t, d, 3, dropped.Add(2*time.Second))
	must(t, d, 0, "snapshot", "verify")
	must(t, d, 6, "trust", "install", h.file("2-roots.pb"))
	if _, errs := must(t, d, 0, "grant", "user:alice", "server:payments/refund"); !strings.Contains(errs, "applied by 3 of 3 nodes") {
		t.Errorf("after the rotation: %s", errs)
	}
	if n, wrong := stop(); len(wrong) > 0 || n < 100 {
		t.Errorf("%d of %d calls were refused: %v", len(wrong), n, wrong[:min(3, len(wrong))])
	} else {
		t.Logf("%d calls during the rotation, none refused", n)
	}

	// A node that comes back with nobody to ask serves what the new keys have signed, and no kill is forgotten.
	kill(t, d.PIDs.Nodes[0])
	kill(t, d.PIDs.Nodes[1])
	kill(t, d.PIDs.Nodes[2])
	kill(t, d.PIDs.ControlPlane)
	restart(t, d, "n2")
	eventually(t, "n2 serves alone", func() bool {
		got, _ := outcome(d, 1, d.Tokens["alice"], "demo", "echo", `{"message":"hi"}`)
		return got == "ok"
	})
	if got, _ := outcome(d, 1, carol, "demo", "echo", `{"message":"hi"}`); got != "unauthorized" {
		t.Errorf("a kill whose key was withdrawn is forgotten: %s", got)
	}
}

// signing are the ids of the keys that sign now: head, heartbeat, kill.
func signing(t *testing.T, d *devrun.Dev) [3]string {
	t.Helper()
	out, _ := must(t, d, 0, "trust", "show", "-o", "json")
	var shown struct {
		Keys []struct {
			ID, Role string
			Signs    bool
		}
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	var ids [3]string
	for i, role := range []string{"head", "heartbeat", "kill"} {
		for _, k := range shown.Keys {
			if k.Role == role && k.Signs {
				ids[i] = k.ID
			}
		}
		if ids[i] == "" {
			t.Fatalf("nothing signs for %s: %s", role, out)
		}
	}
	return ids
}

func TestANodeThatWasKilledServesNobodyAndTheOthersGoOn(t *testing.T) {
	t.Parallel()
	d := start(t)
	must(t, d, 3, "kill", "node", "local/n9")
	out, errs := must(t, d, 0, "kill", "node", "local/n3", "--reason", "disk stolen", "-o", "json")
	if !strings.Contains(out, `"waiting": []`) || strings.Count(out, `"node"`) != 4 { // its kind, and three nodes
		t.Errorf("acknowledgements: %s%s", out, errs)
	}
	eventually(t, "n3 serves nobody", func() bool {
		resp, err := http.Get(d.MCPURLs[2])
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(b), "was killed")
	})
	resp, err := http.Get("http://" + port(t, d, 10+5*2+4) + "/readyz?verbose")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(b), "[-]killed failed: this node was killed") {
		t.Errorf("health: %d %s", resp.StatusCode, b)
	}
	eventually(t, "the control plane has turned it away", func() bool {
		out, _, _ := cli(t, d, "cell", "status", "-o", "json")
		var all []trusted
		return json.Unmarshal([]byte(out), &all) == nil && len(all) == 3 && all[0].Connected && all[1].Connected && !all[2].Connected
	})
	eventually(t, "the two others take writes", func() bool {
		_, errs, status := cli(t, d, "grant", "user:alice", "server:payments/refund")
		return status == 0 && strings.Contains(errs, "applied by 2 of 2 nodes")
	})
	for node := range 2 {
		if got, _ := outcome(d, node, d.Tokens["alice"], "payments", "refund", `{"amount":5}`); got != "ok" {
			t.Errorf("n%d: %s", node+1, got)
		}
	}
	if out, _ := must(t, d, 0, "kill", "list"); !strings.Contains(out, "local/n3") || !strings.Contains(out, "disk stolen") {
		t.Errorf("%s", out)
	}
}
