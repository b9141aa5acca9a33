//go:build unix

package tlog

import (
	"errors"
	"fmt"
	"io"

	"github.com/mcpvault/mcpvault/kit/flock"
)

func lockFile(name string) (io.Closer, error) {
	l, err := flock.Open(name)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("%w: %s", ErrInUse, name)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}
