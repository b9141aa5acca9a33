package server

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// RootsFile is the sealed roots in the keys directory: what every node and every verifier starts to trust from.
const RootsFile = "roots.pb"

// rootThreshold of three root keys sign the roots.
const rootThreshold = 2

// keys are what a running control plane signs with. The root keys are not among them: after the first start they belong
// into a safe.
type keys struct {
	head, heartbeat, kill *seal.Signer
	roots                 []byte
	token                 *jose.Signer
	// issuer is the token key as cells get it.
	issuer *snapshotv1.IssuerKey
}

// openKeys reads the keys, and makes them when there are no roots yet. roots.pb is written last: without it the start was
// cut short, and goes on with the keys that are there.
func openKeys(dir string) (*keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the keys directory: %w", err)
	}
	path := filepath.Join(dir, RootsFile)
	roots, err := os.ReadFile(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err != nil && !fresh {
		return nil, fmt.Errorf("read the roots: %w", err)
	}
	k := &keys{roots: roots}
	var token *seal.Signer
	for _, want := range []struct {
		name string
		to   **seal.Signer
	}{{"head", &k.head}, {"heartbeat", &k.heartbeat}, {"kill", &k.kill}, {"token", &token}} {
		if *want.to, err = openKey(dir, want.name, fresh); err != nil {
			return nil, err
		}
	}
	if fresh {
		if k.roots, err = makeRoots(dir, k); err != nil {
			return nil, err
		}
		if err := writeWhole(path, k.roots, 0o644); err != nil {
			return nil, err
		}
	}
	if err := k.check(); err != nil {
		return nil, err
	}
	return k, k.useToken(token)
}

func keyFile(dir, name string) string { return filepath.Join(dir, name+".key") }

// openKey reads a key; it makes one only at the first start: a key that got lost must not be replaced in silence.
func openKey(dir, name string, fresh bool) (*seal.Signer, error) {
	path := keyFile(dir, name)
	s, err := seal.ReadKey(path)
	if err == nil {
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, problem.Newf(problem.Invalid, "put the key back from its backup, with mode 0600", "the signing key %s cannot be used", path).Because(err)
	}
	if !fresh {
		return nil, problem.Newf(problem.NotFound, "put it back from its backup; cells go on serving meanwhile", "the signing key %s is missing", path)
	}
	if s, err = seal.GenerateKey(); err != nil {
		return nil, err
	}
	return s, seal.WriteKey(path, s)
}

// makeRoots makes three root keys, two of which sign which keys may sign what.
func makeRoots(dir string, k *keys) ([]byte, error) {
	list := []seal.RoleKey{
		{Role: snapshotv1.KeyRole_KEY_ROLE_HEAD, Key: k.head.Public()},
		{Role: snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, Key: k.heartbeat.Public()},
		{Role: snapshotv1.KeyRole_KEY_ROLE_KILL, Key: k.kill.Public()},
	}
	var signers []*seal.Signer
	for i := range 3 {
		s, err := openKey(dir, fmt.Sprintf("root-%d", i+1), true)
		if err != nil {
			return nil, err
		}
		list = append(list, seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Key: s.Public()})
		signers = append(signers, s)
	}
	return seal.SignRoots(seal.BuildRoots(1, 1, rootThreshold, list...), signers[:rootThreshold]...)
}

// check refuses to sign with keys that no cell would believe.
func (k *keys) check() error {
	pin, err := seal.RootsDigest(k.roots)
	if err != nil {
		return fmt.Errorf("read the roots: %w", err)
	}
	trust, err := seal.OpenRoots(k.roots, pin)
	if err != nil {
		return problem.New(problem.Invalid, "the roots are not signed as they should be", "put "+RootsFile+" back from its backup").Because(err)
	}
	for _, want := range []struct {
		role   snapshotv1.KeyRole
		signer *seal.Signer
		name   string
	}{
		{snapshotv1.KeyRole_KEY_ROLE_HEAD, k.head, "head"},
		{snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT, k.heartbeat, "heartbeat"},
		{snapshotv1.KeyRole_KEY_ROLE_KILL, k.kill, "kill"},
	} {
		if !slices.Contains(trust.KeyIDs(want.role), want.signer.KeyID()) {
			return problem.Newf(problem.Invalid, "keys and "+RootsFile+" belong together: put both back from the same backup",
				"the roots do not name the %s key %s", want.name, want.signer.KeyID())
		}
	}
	return nil
}

func (k *keys) useToken(s *seal.Signer) (err error) {
	if k.token, err = jose.NewSigner(s.Private(), s.KeyID()); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		return fmt.Errorf("encode the token key: %w", err)
	}
	k.issuer = &snapshotv1.IssuerKey{Kid: s.KeyID(), Alg: jose.EdDSA, PublicKey: der}
	return nil
}

// writeWhole replaces a file in one step: nobody reads half of it.
func writeWhole(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
