package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// lockLimit is how long OpenDB waits for another process, which may be the one that this one replaces.
const lockLimit = 2 * time.Second

// OpenDB opens or makes a bbolt file, mode 0600, synced at each commit. All its pages are checked before bbolt follows any
// of them. mapSize is how much is mapped at first: a map that need not grow is not moved under readers. The error wraps
// ErrCorrupt or ErrInUse.
func OpenDB(path string, mapSize int) (*bbolt.DB, error) {
	return openChecked(path, &bbolt.Options{FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapSize})
}

func openChecked(path string, options *bbolt.Options) (*bbolt.DB, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		// Opening to read takes the lock and looks at the head pages only.
		db, err := openBolt(path, &bbolt.Options{ReadOnly: true})
		if err != nil {
			return nil, err
		}
		if err := errors.Join(checkPages(path, db.Info().PageSize), db.Close()); err != nil {
			return nil, err
		}
	}
	db, err := openBolt(path, options)
	if err != nil {
		return nil, err
	}
	db.AllocSize = 1 << 20
	return db, nil
}

func openBolt(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	var file *os.File
	options.Timeout = lockLimit
	options.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, mode)
		file = f
		return f, err
	}
	err = Guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, options)
		return err
	})
	if err == nil {
		return db, nil
	}
	// After a panic inside Open the file would stay open. Its map, and with it the lock, does: a damaged file is to be
	// moved away, not opened again.
	if file != nil {
		_ = file.Close()
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, ErrInUse
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil, err
}

// Guard turns the panics and memory faults that a damaged bbolt file causes into ErrCorrupt.
func Guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, p)
		}
	}()
	return f()
}

// ReplaceFile writes path in one step and makes it durable, mode 0600.
func ReplaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// tmpPrefix marks files that a crash may leave behind.
const tmpPrefix = ".tmp-"

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
