package pgdev

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// owner is the user that the server runs as. PostgreSQL refuses to run as root, so root picks somebody else.
type owner struct {
	uid, gid uint32
	// drop says that the processes must change to this user.
	drop bool
}

func pickOwner() (owner, error) {
	if os.Geteuid() != 0 {
		return owner{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return owner{uid: uint32(uid), gid: uint32(gid), drop: true}, nil
		}
	}
	return owner{}, problem.New(problem.Unavailable, "PostgreSQL does not run as root and there is no user postgres or nobody",
		"useradd --system postgres")
}

// procAttr makes a child of its own process group, so that a terminal's Ctrl-C reaches only those who asked for it.
func (o owner) procAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if o.drop {
		attr.Credential = &syscall.Credential{Uid: o.uid, Gid: o.gid}
	}
	dieWithParent(attr)
	return attr
}

// canReach reports whether the owner may pass through every directory above and including dir.
func (o owner) canReach(dir string) (bool, error) {
	if !o.drop {
		return true, nil
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return false, fmt.Errorf("look at %s: %w", dir, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || !o.mayPass(info.Mode(), st) {
			return false, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true, nil
		}
		dir = parent
	}
}

// mayPass applies the first class of permission bits that fits, as the kernel does.
func (o owner) mayPass(mode fs.FileMode, st *syscall.Stat_t) bool {
	switch {
	case st.Uid == o.uid:
		return mode&0o100 != 0
	case st.Gid == o.gid:
		return mode&0o010 != 0
	}
	return mode&0o001 != 0
}

// ownDir makes sure that path is a directory of this user's own, mode 0700. Others may write to the directories above it
// (they may be /tmp), so nothing that somebody else has put there is used.
func (o owner) ownDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return problem.Newf(problem.Conflict, "remove it, or choose another data directory",
			"%s is not a directory that PostgreSQL can use", path).Because(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || (st.Uid != o.uid && int(st.Uid) != os.Geteuid()) {
		return problem.Newf(problem.Conflict, "remove it, or choose another data directory", "%s belongs to another user", path)
	}
	if st.Uid != o.uid {
		if err := f.Chown(int(o.uid), int(o.gid)); err != nil {
			return fmt.Errorf("give %s to its user: %w", path, err)
		}
	}
	if err := f.Chmod(0o700); err != nil {
		return fmt.Errorf("close %s to others: %w", path, err)
	}
	return nil
}
