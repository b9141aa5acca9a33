//go:build unix

// Package flock takes a file for one process at a time (flock(2)). The kernel gives it back however the process ends.
package flock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrHeld is returned while another holder has the file.
var ErrHeld = errors.New("held by another process")

// Lock is a file that is held.
type Lock struct{ f *os.File }

// Open makes the file when it is missing, and holds it. A symbolic link is refused.
func Open(name string) (*Lock, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	l, err := Hold(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return l, nil
}

// Hold takes an open file, which Close then closes.
func Hold(f *os.File) (*Lock, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return &Lock{f}, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return nil, fmt.Errorf("%s is %w", f.Name(), ErrHeld)
		case !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}

// Close gives the file back. Closing it would not be enough: a child that is being started at this moment has a copy of every
// open file until its exec, and the lock lives as long as any copy.
func (l *Lock) Close() error {
	return errors.Join(unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}
