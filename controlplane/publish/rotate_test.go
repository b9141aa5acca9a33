package publish_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// keyed is a publisher whose keys lie in a directory, with two tenants and a kill.
type keyed struct {
	st   *store.Store
	dir  string
	ring *keyring.Ring
	p    *publish.Publisher
	// stop ends p.
	stop func()
}

func withKeys(t *testing.T) *keyed {
	t.Helper()
	k := &keyed{st: storetest.Open(t), dir: filepath.Join(t.TempDir(), "keys")}
	k.ring = k.open(t)
	for _, name := range []string{"acme", "globex"} {
		tenant := storetest.Tenant(t, k.st, name)
		addUser(t, k.st, tenant.ID, "alice")
		env, err := seal.SignKill(&snapshotv1.Kill{
			Id: "k-" + name, Kind: snapshotv1.KillKind_KILL_KIND_USER, TenantId: string(tenant.ID), Subject: "mallory", IssuedMs: 1,
		}, k.ring.Current().Kill)
		if err != nil {
			t.Fatal(err)
		}
		_, err = k.st.Write(t.Context(), tenant.ID, "test", func(tx *store.Tx) error {
			tx.SetKind(store.OutboxKill)
			if _, err := tx.InsertKill(t.Context(), store.Kill{ID: "k-" + name, Kind: "user", Subject: "mallory", IssuedAt: tx.Now(), Envelope: env}); err != nil {
				return err
			}
			return tx.Change(t.Context(), "kill.user", "mallory", nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	k.p, k.stop = k.run(t, k.ring)
	return k
}

func (k *keyed) open(t *testing.T) *keyring.Ring {
	t.Helper()
	r, err := keyring.Open(k.dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (k *keyed) run(t *testing.T, ring *keyring.Ring) (*publish.Publisher, func()) {
	t.Helper()
	p := publish.New(publish.Config{
		Store: k.st, Keys: ring, Cells: map[string][]string{"local": {publish.Everyone}}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return p, stop
}

// verifies reports whether everything that a cell is shown is believed by these roots alone.
func verifies(v publish.View, trust *seal.Trust) bool {
	if _, err := trust.OpenManifest(v.Manifest, "local"); err != nil || len(v.Heads) != 2 || len(v.Kills) != 2 {
		return false
	}
	if _, err := trust.OpenHeartbeat(v.Heartbeat, "local"); err != nil {
		return false
	}
	for _, h := range v.Heads {
		if _, err := trust.OpenHead(h.Envelope); err != nil {
			return false
		}
	}
	for _, kill := range v.Kills {
		if _, err := trust.OpenKill(kill.Envelope); err != nil {
			return false
		}
	}
	return true
}

func TestAfterARotationNothingThatIsShownOrStoredNeedsTheOldKeys(t *testing.T) {
	t.Parallel()
	k := withKeys(t)
	old := k.ring.Current()
	before := await(t, k.p, "local", "both tenants and their kills", func(v publish.View) bool { return verifies(v, old.Trust) })

	roles := []snapshotv1.KeyRole{snapshotv1.KeyRole_KEY_ROLE_HEAD, snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, snapshotv1.KeyRole_KEY_ROLE_KILL}
	var add, drop []func(*snapshotv1.Roots)
	for i, role := range roles {
		key := keyringtest.Key(t, keyring.Path(k.dir, []string{"head-2", "heartbeat-2", "kill-2"}[i]))
		add = append(add, keyringtest.Name(key, role))
	}
	for _, s := range []*seal.Signer{old.Head, old.Heartbeat, old.Kill} {
		drop = append(drop, keyringtest.Unname(s.KeyID()))
	}
	if _, err := k.ring.Install(t.Context(), keyringtest.Next(t, k.dir, old, 2, add...)); err != nil {
		t.Fatal(err)
	}
	// The roots that will be: what they believe is what the new keys have signed.
	third := keyringtest.Next(t, k.dir, k.ring.Current(), 2, drop...)
	trust, err := k.ring.Current().Trust.OpenRoots(third)
	if err != nil {
		t.Fatal(err)
	}
	v := await(t, k.p, "local", "everything is signed anew", func(v publish.View) bool { return verifies(v, trust) })
	for i, h := range v.Heads {
		if h.Version.Epoch != before.Heads[i].Version.Epoch || !h.Version.Newer(before.Heads[i].Version) {
			t.Errorf("generation %s after %s: a new key makes a new generation", h.Version, before.Heads[i].Version)
		}
	}
	if v.Resigned == before.Resigned {
		t.Error("nodes that hold the kills are not sent them again")
	}
	if string(v.Roots) != string(k.ring.Current().Roots) {
		t.Error("the cell is not shown the roots that name the keys")
	}
	if _, err := k.ring.Install(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	await(t, k.p, "local", "the roots without the old keys", func(v publish.View) bool { return string(v.Roots) == string(third) && verifies(v, trust) })
	// A control plane that starts now shows the same: what is stored needs the old keys no more.
	other, _ := k.run(t, k.open(t))
	await(t, other, "local", "the stored generations and kills", func(v publish.View) bool { return verifies(v, trust) })
}

func TestOnlyTheRootsRaiseAnEpochAndAnOlderOneNeverComesBack(t *testing.T) {
	t.Parallel()
	k := withKeys(t)
	first := k.ring.Current()
	await(t, k.p, "local", "both tenants", func(v publish.View) bool { return verifies(v, first.Trust) })
	older := k.open(t)
	raised := keyringtest.Next(t, k.dir, first, 2, func(r *snapshotv1.Roots) { r.Epoch = 2 })
	if _, err := k.ring.Install(t.Context(), raised); err != nil {
		t.Fatal(err)
	}
	v := await(t, k.p, "local", "every tenant begins again", func(v publish.View) bool {
		return len(v.Heads) == 2 && v.Heads[0].Version.Epoch == 2 && v.Heads[1].Version.Epoch == 2
	})
	for _, h := range v.Heads {
		if h.Version.Generation != 1 {
			t.Errorf("generation %s", h.Version)
		}
		err := k.st.Read(t.Context(), h.TenantID, func(tx *store.Tx) error {
			self, err := tx.Self(t.Context())
			if err == nil && self.Epoch != 2 {
				t.Errorf("tenant %s is stored at epoch %d", self.Name, self.Epoch)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := first.Trust.OpenHead(v.Heads[0].Envelope); err == nil {
		t.Error("a head of the new epoch is believed by the older roots")
	}
	// A control plane that still has the older roots publishes nothing, and says why.
	k.stop()
	stale, _ := k.run(t, older)
	id := v.Heads[0].TenantID
	addUser(t, k.st, id, "bob")
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		failures := stale.Status().Failures
		if len(failures) > 0 && strings.Contains(failures[0].Message, "epoch 2") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it is not refused: %+v", stale.Status())
		}
	}
	if h := stale.Head(id); h == nil || h.Version != v.Heads[0].Version {
		t.Errorf("%v is in force", h)
	}
}

func TestATenantThatCannotBePublishedIsNamedWhileOnlyAnOlderKeyHasSignedIt(t *testing.T) {
	t.Parallel()
	k := withKeys(t)
	old := k.ring.Current()
	await(t, k.p, "local", "both tenants", func(v publish.View) bool { return verifies(v, old.Trust) })
	acme, err := k.st.TenantByName(t.Context(), "acme")
	if err != nil {
		t.Fatal(err)
	}
	srv, _ := breakServer(t, &bundle{st: k.st, acme: acme})
	next := keyringtest.Key(t, keyring.Path(k.dir, "head-2"))
	if _, err := k.ring.Install(t.Context(), keyringtest.Next(t, k.dir, old, 2, keyringtest.Name(next, snapshotv1.KeyRole_KEY_ROLE_HEAD))); err != nil {
		t.Fatal(err)
	}
	await(t, k.p, "local", "the other tenant is signed anew", func(v publish.View) bool {
		return len(v.Heads) == 2 && slices.ContainsFunc(v.Heads, func(h *publish.Head) bool { return slices.Contains(h.Signers, next.KeyID()) })
	})
	if got := k.p.Status().Outdated; !slices.Equal(got, []string{"acme"}) {
		t.Errorf("only an older key has signed for %v", got)
	}
	_, err = k.st.Write(t.Context(), acme.ID, "test", func(tx *store.Tx) error {
		if err := tx.DeleteServer(t.Context(), srv.ID); err != nil {
			return err
		}
		return tx.Change(t.Context(), "x", "x", nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, k.p, "local", "nobody is left", func(publish.View) bool { return len(k.p.Status().Outdated) == 0 })
}
