package seal_test

import (
	"bytes"
	"crypto/ed25519"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

// -update writes the golden envelopes anew; they change only with the format.
var update = flag.Bool("update", false, "write the golden envelopes")

func TestEnvelopesStayWhatTheyWere(t *testing.T) {
	t.Parallel()
	for name, s := range all(t) {
		path := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".dsse")
		if *update {
			if err := os.WriteFile(path, s.env, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(s.env, want) {
			t.Errorf("%s is sealed into other bytes", name)
		}
		if err := s.open(want); err != nil {
			t.Errorf("%s of old: %v", name, err)
		}
	}
}

func fuzz(f *testing.F, name string) {
	s := all(f)[name]
	f.Add(s.env)
	f.Add(s.env[:len(s.env)/2])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What opens has to carry what was signed: nobody here can sign anything else.
		if s.open(b) == nil && !seal.SamePayload(b, s.env) {
			t.Fatalf("%x opened", b)
		}
	})
}

func FuzzOpenHead(f *testing.F)      { fuzz(f, "head") }
func FuzzOpenManifest(f *testing.F)  { fuzz(f, "manifest") }
func FuzzOpenHeartbeat(f *testing.F) { fuzz(f, "heartbeat") }
func FuzzOpenKill(f *testing.F)      { fuzz(f, "kill") }
func FuzzOpenRoots(f *testing.F)     { fuzz(f, "roots") }

func FuzzOpenNewRoots(f *testing.F) {
	s := all(f)["new roots"]
	f.Add(s.env)
	f.Fuzz(func(_ *testing.T, b []byte) { _ = s.open(b) })
}

// FuzzBodies opens arbitrary payloads under good signatures: what a stolen key could send must not panic.
func FuzzBodies(f *testing.F) {
	a := snapshottest.NewAuthority(f)
	for _, s := range all(f) {
		e := &snapshotv1.Envelope{}
		if err := proto.Unmarshal(s.env, e); err != nil {
			f.Fatal(err)
		}
		f.Add(e.GetPayload())
	}
	f.Fuzz(func(_ *testing.T, payload []byte) {
		for _, typ := range []string{seal.TypeHead, seal.TypeManifest, seal.TypeHeartbeat, seal.TypeKill, seal.TypeRoots} {
			e := &snapshotv1.Envelope{PayloadType: typ, Payload: payload}
			msg := fmt.Sprintf("DSSEv1 %d %s %d %s", len(typ), typ, len(payload), payload)
			for _, s := range []*seal.Signer{a.Head, a.Heartbeat, a.Kill, a.Root[0], a.Root[1]} {
				e.Signatures = append(e.Signatures, &snapshotv1.Signature{KeyId: s.KeyID(), Sig: ed25519.Sign(s.Private(), []byte(msg))})
			}
			env, err := proto.Marshal(e)
			if err != nil {
				continue
			}
			_, _ = a.Trust.OpenHead(env)
			_, _ = a.Trust.OpenManifest(env, "eu-1")
			_, _ = a.Trust.OpenHeartbeat(env, "eu-1")
			_, _ = a.Trust.OpenKill(env)
			_, _ = a.Trust.OpenRoots(env)
		}
	})
}
