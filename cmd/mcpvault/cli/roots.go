package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// maxRoots bounds a file of root keys.
const maxRoots = 1 << 20

// Roots reads the root keys that the reader trusts, from a file or from the context's: the server's word on them would prove
// nothing. Offline, a context is not needed.
func (a *App) Roots(path string, offline bool) ([]byte, error) {
	if path == "" {
		c, err := a.Context()
		if err != nil && !offline {
			return nil, err
		}
		if err == nil {
			path = c.RootsFile
		}
	}
	if path == "" {
		return nil, problem.New(problem.Invalid, "there are no root keys to check against",
			"give --roots FILE with the keys that you got from whoever runs the installation")
	}
	raw, err := ReadFile(path, maxRoots)
	if err != nil {
		return nil, problem.New(problem.NotFound, "the root keys cannot be read: "+err.Error(), "check --roots, or roots_file of the context")
	}
	return raw, nil
}

// ReadFile reads a file of a bounded size.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}
