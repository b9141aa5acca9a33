//go:build !linux

package tlog

import "os"

func datasync(f *os.File) error { return f.Sync() }

func allocate(f *os.File, n int64) error { return f.Truncate(n) }
