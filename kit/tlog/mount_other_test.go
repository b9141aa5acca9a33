//go:build !linux

package tlog_test

import (
	"errors"
	"testing"
	"time"
)

func mountSmall(*testing.T, string, int) error { return errors.New("only on Linux") }

func cpuTime() time.Duration { return 0 }
