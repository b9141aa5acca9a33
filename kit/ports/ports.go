// Package ports hands out runs of free TCP ports on loopback, so that installations started at the same moment, in one process
// or in many, do not choose the same ones.
package ports

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Span is how many ports a block has. Its last one is listened on for as long as the block is held: that is how others know.
const Span = 200

// The blocks lie above the well-known servers and below the ports that outgoing connections take.
const (
	first = 12_000
	count = (32_000 - first) / Span
)

// ErrNone is returned when no block is free.
var ErrNone = errors.New("no run of free ports between 12000 and 32000")

// Block is a run of ports that nobody else who asks this package is given.
type Block struct {
	// Base is the first port; Base to Base+Span-2 are the holder's.
	Base int
	sign net.Listener
}

// Take takes a block of which every port is free.
func Take() (*Block, error) {
	for _, i := range rand.Perm(count) { //nolint:gosec // Any free ports will do.
		if b := take(first + i*Span); b != nil {
			return b, nil
		}
	}
	return nil, ErrNone
}

// take looks at the sign before it tries any other port: trying one takes it for a moment, and whoever holds the block may be
// about to listen there.
func take(base int) *Block {
	sign, err := listen(base + Span - 1)
	if err != nil {
		return nil
	}
	for port := base; port < base+Span-1; port++ {
		l, err := listen(port)
		if err != nil {
			_ = sign.Close()
			return nil
		}
		_ = l.Close()
	}
	return &Block{Base: base, sign: sign}
}

// Close gives the block back.
func (b *Block) Close() error {
	if err := b.sign.Close(); err != nil {
		return fmt.Errorf("give ports %d to %d back: %w", b.Base, b.Base+Span-1, err)
	}
	return nil
}

func listen(port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}
