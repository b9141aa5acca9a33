package trust_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/manage"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/trust"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// table is where the holders sit: one directory and the program.
type table struct {
	t   *testing.T
	dir string
}

func (b table) path(name string) string { return filepath.Join(b.dir, name) }

// run types a command; words that are names of files are looked up on the table. It demands the exit status.
func (b table) run(want int, line string) (stdout, stderr string) {
	b.t.Helper()
	var out, errs bytes.Buffer
	words := strings.Fields(line)
	for i, w := range words {
		if strings.Contains(w, ".") || w == "keys" {
			words[i] = b.path(w)
		}
	}
	got := cli.Run(b.t.Context(), cli.Config{
		Args: words, Env: []string{"HOME=" + b.dir}, Stdout: &out, Stderr: &errs, Dir: b.dir, Version: "test",
		Commands: append(manage.Commands(), trust.Command),
	})
	if got != want {
		b.t.Fatalf("mcpvault %s: exit status %d, want %d\n%s%s", line, got, want, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

func (b table) keygen(name string) (id string) {
	b.t.Helper()
	out, _ := b.run(0, "trust keygen "+name+" -o json")
	var key struct{ ID string }
	if err := json.Unmarshal([]byte(out), &key); err != nil || key.ID == "" {
		b.t.Fatalf("%s: %v", out, err)
	}
	return key.ID
}

// founded is an installation whose first roots came out of a ceremony.
func founded(t *testing.T) table {
	t.Helper()
	b := table{t, t.TempDir()}
	if err := os.Mkdir(b.path("keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"r1.key", "r2.key", "r3.key", "keys/head.key", "keys/heartbeat.key", "keys/kill.key", "glass.key"} {
		b.keygen(name)
	}
	b.run(0, "trust init --root r1.key.pub --root r2.key.pub --root r3.key.pub --head keys/head.key.pub --heartbeat keys/heartbeat.key.pub "+
		"--kill keys/kill.key.pub --kill glass.key.pub --out first.json")
	b.run(0, "trust sign first.json --key r1.key --out r1.sig")
	if _, errs := b.run(4, "trust assemble first.json r1.sig --out roots-a.pb"); !strings.Contains(errs, "1 of 2 signatures") || !strings.Contains(errs, "hint: have more root holders sign") {
		t.Errorf("one signature: %s", errs)
	}
	b.run(0, "trust sign first.json --key r3.key --out r3.sig")
	b.run(0, "trust assemble first.json r1.sig r3.sig --out roots-1.pb")
	b.run(0, "trust install roots-1.pb --keys-dir keys")
	return b
}

func ring(b table) *keyring.Ring {
	b.t.Helper()
	r, err := keyring.Open(b.path("keys"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func TestAHeadKeyIsReplacedByThreeCommandsOfTwoHolders(t *testing.T) {
	t.Parallel()
	b := founded(t)
	r := ring(b)
	old := r.Current().Head.KeyID()
	next := b.keygen("keys/head-2.key")
	b.run(0, "trust propose --roots roots-1.pb --out next.json")
	b.run(0, "trust add-key next.json head keys/head-2.key.pub")
	_, errs := b.run(0, "trust sign next.json --roots roots-1.pb --key r1.key --out n1.sig")
	if !strings.Contains(errs, "+ head key "+next) || !strings.Contains(errs, "version 1 -> 2") || !strings.Contains(errs, "proposal digest ") {
		t.Errorf("a holder is shown: %s", errs)
	}
	b.run(0, "trust sign next.json --roots roots-1.pb --key r2.key --out n2.sig")
	b.run(0, "trust assemble next.json n1.sig n2.sig --roots roots-1.pb --out roots-2.pb")
	b.run(0, "trust install roots-2.pb --keys-dir keys")
	r.Reload(t.Context())
	if r.Current().Head.KeyID() != next || r.Problem() != nil {
		t.Fatalf("the running control plane signs with %s: %v", r.Current().Head.KeyID(), r.Problem())
	}
	// The old key goes, and with it everything that was ever published under the old epoch.
	b.run(0, "trust propose --roots roots-2.pb --out last.json")
	b.run(0, "trust remove-key last.json "+old)
	b.run(0, "trust raise-epoch last.json")
	b.run(0, "trust sign last.json --roots roots-2.pb --key r2.key --out l2.sig")
	b.run(0, "trust sign last.json --roots roots-2.pb --key r3.key --out l3.sig")
	b.run(0, "trust assemble last.json l2.sig l3.sig --roots roots-2.pb --out roots-3.pb")
	b.run(0, "trust install roots-3.pb --keys-dir keys")
	r.Reload(t.Context())
	if tr := r.Current().Trust; tr.Version() != 3 || tr.Epoch() != 2 || len(tr.KeyIDs(snapshotv1.KeyRole_KEY_ROLE_HEAD)) != 1 {
		t.Errorf("version %d epoch %d", tr.Version(), tr.Epoch())
	}
	out, _ := b.run(0, "trust show roots-3.pb -o json")
	var shown struct {
		Version, Epoch uint64
		Keys           []struct{ ID, Role string }
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.Version != 3 || shown.Epoch != 2 || len(shown.Keys) != 7 {
		t.Errorf("%+v %v", shown, err)
	}
	if _, errs := b.run(6, "trust install roots-2.pb --keys-dir keys"); !strings.Contains(errs, "do not follow from version 3") {
		t.Errorf("a rollback: %s", errs)
	}
}

func TestTheCeremonySaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	b := founded(t)
	b.run(0, "trust propose --roots roots-1.pb --out next.json")
	b.run(0, "trust sign next.json --roots roots-1.pb --key r1.key --out n1.sig")
	b.run(0, "trust raise-epoch next.json")
	b.run(0, "trust sign next.json --roots roots-1.pb --key r2.key --out n2.sig")
	for line, want := range map[string]struct {
		status int
		text   string
	}{
		"trust assemble next.json n1.sig n2.sig --roots roots-1.pb --out x.pb": {6, "sign this very proposal"},
		"trust sign next.json --roots roots-1.pb --key r1.key --out n2.sig":    {6, "choose another name"},
		"trust sign next.json --roots roots-1.pb --key r1.key.pub --out x.sig": {2, "root key cannot be used"},
		"trust sign next.json --roots roots-1.pb --out x.sig":                  {2, "give --key FILE"},
		"trust add-key next.json head r1.key":                                  {2, "the private half"},
		"trust add-key next.json head keys/kill.key.pub":                       {2, "there already"},
		"trust add-key next.json king r1.key.pub":                              {2, "role \"king\""},
		"trust remove-key next.json 0123456789abcdef":                          {2, "no such key"},

		"trust keygen r1.key":                                              {6, "never overwritten"},
		"trust show first.json":                                            {2, "no root keys"},
		"trust install first.json --keys-dir keys":                         {2, "no roots"},
		"trust propose --roots nothing.pb --out y.json":                    {3, "cannot be read"},
		"trust init --root r1.key.pub --head r2.key.pub --out z.json":      {2, "no heartbeat key"},
		"kill sign user mallory --key glass.key --out m.kills":             {2, "--tenant-id"},
		"kill sign cat mallory --key glass.key --everywhere --out m.kills": {2, "cannot be killed"},
		"kill inspect roots-1.pb --roots roots-1.pb":                       {4, "block 1"},
	} {
		if _, errs := b.run(want.status, line); !strings.Contains(errs, want.text) || !strings.Contains(errs, "hint: ") {
			t.Errorf("%s:\n%s", line, errs)
		}
	}
}

func TestAKillIsSignedAndReadWithNoNetworkAtAll(t *testing.T) {
	t.Parallel()
	b := founded(t)
	b.run(0, "kill sign user mallory --key glass.key --tenant-id 0197f3c2 --reason stolen --out m.kills")
	b.run(0, "kill sign node eu/n3 --key glass.key --everywhere --out m.kills")
	out, errs := b.run(0, "kill inspect m.kills --roots roots-1.pb -o json")
	var kills []struct {
		Kind, Subject, Reason string
		TenantID              string `json:"tenant_id"`
	}
	if err := json.Unmarshal([]byte(out), &kills); err != nil || len(kills) != 2 || kills[0].Subject != "mallory" || kills[0].TenantID != "0197f3c2" || kills[1].Kind != "node" {
		t.Fatalf("%s%s", out, errs)
	}
	// A key that the roots name for something else.
	b.run(0, "kill sign user alice --key keys/head.key --everywhere --out bad.kills")
	if _, errs := b.run(4, "kill inspect bad.kills --roots roots-1.pb"); !strings.Contains(errs, "block 1: ") || !strings.Contains(errs, "refused whole") {
		t.Errorf("%s", errs)
	}
}
