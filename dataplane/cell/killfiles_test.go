package cell

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/breakglass"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestAFileOfKillsIsTakenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	n, a := builtBy(t)
	dir := filepath.Join(n.cfg.DataDir, killDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sign := func(id string, key *seal.Signer) []byte {
		env, err := seal.SignKill(&snapshotv1.Kill{Id: id, Kind: snapshotv1.KillKind_KILL_KIND_USER, Subject: "mallory-" + id, IssuedMs: snapshottest.Now}, key)
		if err != nil {
			t.Fatal(err)
		}
		return env
	}
	file := func(envs ...[]byte) []byte {
		b, err := breakglass.Encode(envs...)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	foreign := a.Head // a key that the roots name for something else
	good := file(sign("k1", a.Kill), sign("k2", a.Kill))
	seen := map[string]string{}
	for _, c := range []struct {
		name string
		data []byte
		end  string
		know int
	}{
		{"foreign", file(sign("k3", foreign)), killRefused, 0},
		{"mixed", file(sign("k4", a.Kill), sign("k5", foreign)), killRefused, 0},
		{"cut", good[:len(good)-3], killRefused, 0},
		{"huge", make([]byte, breakglass.MaxFile+1), killRefused, 0},
		{"empty", nil, killRefused, 0},
		{"good", good, killTaken, 2},
		{"again", good, killTaken, 2},
	} {
		path := filepath.Join(dir, c.name+killSuffix)
		if err := os.WriteFile(path, c.data[:len(c.data)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		n.lookForKills(t.Context(), dir, seen)
		if err := os.WriteFile(path, c.data, 0o600); err != nil {
			t.Fatal(err)
		}
		n.lookForKills(t.Context(), dir, seen)
		if len(c.data) > 0 {
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: it was taken while it was being written", c.name)
			}
		}
		n.lookForKills(t.Context(), dir, seen)
		if _, err := os.Stat(path + c.end); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if got := len(n.store.Kills()); got != c.know {
			t.Errorf("%s: %d kills are known, want %d", c.name, got, c.know)
		}
	}
	for _, kind := range []string{"k1", "k2"} {
		if !n.pdp.Current().Killed(snapshotv1.KillKind_KILL_KIND_USER, "", "mallory-"+kind) {
			t.Errorf("%s is not in force", kind)
		}
	}
	// A link may point at what nobody meant to be read.
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, good, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link"+killSuffix)
	if err := os.Symlink(secret, link); err != nil {
		t.Fatal(err)
	}
	if _, err := n.takeKillFile(link); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a link: %v", err)
	}
}
