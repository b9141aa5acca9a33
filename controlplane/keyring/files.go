package keyring

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/kit/problem"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const (
	keySuffix = ".key"
	// rootPrefix marks root keys, which are never read here: after the first start they belong into a safe.
	rootPrefix = "root-"
	// rootThreshold of three root keys sign the first roots.
	rootThreshold = 2
	// maxKeyFiles bounds what is looked at.
	maxKeyFiles = 256
)

// Path is where the key of a name lies.
func Path(dir, name string) string { return filepath.Join(dir, name+keySuffix) }

// past is where roots stay after they were replaced: what they believed is still needed to sign it anew, and no older
// ones come back.
func past(dir string, version uint64) string {
	return filepath.Join(dir, "roots-"+strconv.FormatUint(version, 10)+".pb")
}

// create makes the keys of a new installation. The roots are written last: without them the start was cut short, and goes
// on with the keys that are there.
func create(dir string, others []string) error {
	for _, name := range others {
		if _, err := OpenKey(dir, name, true); err != nil {
			return err
		}
	}
	var list []seal.RoleKey
	for _, want := range []struct {
		name string
		role snapshotv1.KeyRole
	}{
		{"head", snapshotv1.KeyRole_KEY_ROLE_HEAD},
		{"heartbeat", snapshotv1.KeyRole_KEY_ROLE_HEARTBEAT},
		{"kill", snapshotv1.KeyRole_KEY_ROLE_KILL},
	} {
		s, err := OpenKey(dir, want.name, true)
		if err != nil {
			return err
		}
		list = append(list, seal.RoleKey{Role: want.role, Key: s.Public(), Since: 1})
	}
	var signers []*seal.Signer
	for i := range 3 {
		s, err := OpenKey(dir, rootPrefix+strconv.Itoa(i+1), true)
		if err != nil {
			return err
		}
		list = append(list, seal.RoleKey{Role: snapshotv1.KeyRole_KEY_ROLE_ROOT, Key: s.Public(), Since: 1})
		signers = append(signers, s)
	}
	env, err := seal.SignRoots(seal.BuildRoots(1, 1, rootThreshold, list...), signers[:rootThreshold]...)
	if err != nil {
		return err
	}
	return keep(dir, env, 1)
}

// OpenKey reads a key; it makes one only when it may: a key that got lost must not be replaced in silence.
func OpenKey(dir, name string, fresh bool) (*seal.Signer, error) {
	path := Path(dir, name)
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

// read makes a set of what the directory holds. have is the set that signs now; nil at the start.
func read(dir string, have *Set) (*Set, error) {
	env, err := os.ReadFile(filepath.Join(dir, RootsFile))
	if err != nil {
		return nil, problem.Newf(problem.NotFound, "put it back from its backup", "%s cannot be read", filepath.Join(dir, RootsFile)).Because(err)
	}
	var trust *seal.Trust
	if have != nil {
		if trust, err = follow(have.Trust, env); err != nil {
			return nil, err
		}
	} else if trust, err = first(dir, env); err != nil {
		return nil, err
	}
	set, err := choose(dir, env, trust)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(past(dir, trust.Version())); errors.Is(err, fs.ErrNotExist) {
		if err := writeWhole(past(dir, trust.Version()), env); err != nil {
			return nil, err
		}
	}
	set.before, set.Earlier = history(dir, trust.Version())
	return set, nil
}

// first opens the roots of a start: nobody here remembers older ones but their copies.
func first(dir string, env []byte) (*seal.Trust, error) {
	pin, err := seal.RootsDigest(env)
	if err != nil {
		return nil, problem.New(problem.Invalid, RootsFile+" holds no roots", "put it back from its backup").Because(err)
	}
	trust, err := seal.OpenRoots(env, pin)
	if err != nil {
		return nil, problem.New(problem.Invalid, "the roots are not signed as they should be", "put "+RootsFile+" back from its backup").Because(err)
	}
	if versions := copies(dir); len(versions) > 0 && versions[0] > trust.Version() {
		return nil, problem.Newf(problem.Conflict, "put the newest of the files roots-N.pb back as "+RootsFile,
			"%s has version %d, and a newer one was in force before", RootsFile, trust.Version())
	}
	return trust, nil
}

// history is what earlier roots believed, newest first, and their envelopes, oldest first. A copy that cannot be used is
// left out: they are needed to sign old kills anew, and to take nodes along that were away for long.
func history(dir string, version uint64) (all []*seal.Trust, envelopes [][]byte) {
	const most = 32
	for _, v := range copies(dir) {
		if v >= version || len(all) == most {
			continue
		}
		env, err := os.ReadFile(past(dir, v))
		if err != nil {
			continue
		}
		pin, err := seal.RootsDigest(env)
		if err != nil {
			continue
		}
		if t, err := seal.OpenRoots(env, pin); err == nil {
			all, envelopes = append(all, t), append(envelopes, env)
		}
	}
	slices.Reverse(envelopes)
	return all, envelopes
}

// copies are the versions of the roots that were ever in force here, newest first.
func copies(dir string) []uint64 {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var all []uint64
	for _, e := range entries {
		name, isRoots := strings.CutSuffix(e.Name(), ".pb")
		number, isCopy := strings.CutPrefix(name, "roots-")
		if v, err := strconv.ParseUint(number, 10, 64); isRoots && isCopy && err == nil {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b uint64) int { return cmp.Compare(b, a) })
	return all
}

// choose finds for each role the newest key that the roots name and whose private half is here.
func choose(dir string, env []byte, trust *seal.Trust) (*Set, error) {
	here, err := keysIn(dir)
	if err != nil {
		return nil, err
	}
	set := &Set{Roots: env, Trust: trust}
	for _, r := range roles(set) {
		named := trust.Newest(r.role)
		for _, id := range named {
			if s := here[id]; s != nil {
				*r.key = s
				break
			}
		}
		if *r.key == nil {
			return nil, problem.Newf(problem.NotFound, "put that key back into the directory from its backup, with mode 0600; cells go on serving meanwhile",
				"no key in %s may sign %s: the roots (version %d) name %s", dir, r.signs, trust.Version(), strings.Join(named, ", "))
		}
	}
	return set, nil
}

// keysIn reads every key in the directory but the root keys.
func keysIn(dir string) (map[string]*seal.Signer, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the keys directory: %w", err)
	}
	here := map[string]*seal.Signer{}
	for _, e := range entries {
		name, isKey := strings.CutSuffix(e.Name(), keySuffix)
		if !isKey || strings.HasPrefix(name, rootPrefix) || strings.HasPrefix(name, ".") {
			continue
		}
		if len(here) == maxKeyFiles {
			return nil, problem.Newf(problem.Exhausted, "move retired keys away", "more than %d keys are in %s", maxKeyFiles, dir)
		}
		s, err := OpenKey(dir, name, false)
		if err != nil {
			return nil, err
		}
		here[s.KeyID()] = s
	}
	return here, nil
}

// keep writes roots as the present ones, a copy of them first.
func keep(dir string, env []byte, version uint64) error {
	if err := writeWhole(past(dir, version), env); err != nil {
		return err
	}
	return writeWhole(filepath.Join(dir, RootsFile), env)
}

// writeWhole replaces a file in one step: nobody reads half of it.
func writeWhole(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
