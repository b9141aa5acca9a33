//go:build !linux

package tlog_test

import (
	"errors"
	"testing"
)

func mountSmall(*testing.T, string, int) error { return errors.New("only on Linux") }
