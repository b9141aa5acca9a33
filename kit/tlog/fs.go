package tlog

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// FS is what the log needs of a file system. Tests put faults into it. Names are paths as given to Config.
type FS interface {
	// Open opens a file for reading and writing, and creates it (0600) when create is set. It gives fs.ErrNotExist.
	Open(name string, create bool) (File, error)
	// List returns the names of the directory's files.
	List(dir string) ([]string, error)
	Mkdir(dir string) error
	Rename(from, to string) error
	Remove(name string) error
	// SyncDir makes creations, renames and removals in the directory durable.
	SyncDir(dir string) error
	// Lock keeps other processes out until it is closed or this process ends. It gives ErrInUse.
	Lock(name string) (io.Closer, error)
}

// File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes what was written durable, with the size but not the times (fdatasync).
	Sync() error
	// Allocate reserves the first n bytes on the disk, so that writing them does not fail for want of space.
	Allocate(n int64) error
}

// Disk is the machine's file system.
type Disk struct{}

type diskFile struct{ *os.File }

// Open implements FS.
func (Disk) Open(name string, create bool) (File, error) {
	flag := os.O_RDWR
	if create {
		flag |= os.O_CREATE
	}
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return diskFile{f}, nil
}

func (f diskFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (f diskFile) Sync() error { return datasync(f.File) }

func (f diskFile) Allocate(n int64) error { return allocate(f.File, n) }

// List implements FS.
func (Disk) List(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range es {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Mkdir implements FS.
func (Disk) Mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

// Rename implements FS.
func (Disk) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (Disk) Remove(name string) error { return os.Remove(name) }

// SyncDir implements FS.
func (Disk) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// Lock implements FS.
func (Disk) Lock(name string) (io.Closer, error) { return lockFile(name) }

// readAll reads a whole small file of at most limit bytes.
func readAll(fsys FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name, false)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, &CorruptError{File: filepath.Base(name), Offset: limit, What: "the file is too large"}
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && size == 0) {
		return nil, err
	}
	return b, nil
}

// replaceFile writes a whole file so that either the old or the new content is there, whatever happens.
func replaceFile(fsys FS, name string, content []byte) error {
	tmp := name + ".new"
	f, err := fsys.Open(tmp, true)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(name))
}
