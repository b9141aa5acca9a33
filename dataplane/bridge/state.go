package bridge

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"time"
)

// State is what the gateway says in the requestState of a round, before it is sealed: whose call it is, which, where it
// waits, and until when.
type State struct {
	Until time.Time
	Nonce Nonce
	Owner [16]byte
	// Request is the Digest of what was asked.
	Request [32]byte
	// Node is the name of the node that holds the call, "" when none does: the call is then made again.
	Node string
	// Asked is how many questions there were, for a call that no node holds.
	Asked byte
}

const stateBytes = 8 + 16 + 16 + 32 + 1

// Append appends the state's bytes.
func (s *State) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(s.Until.UnixMilli()))
	dst = append(dst, s.Nonce[:]...)
	dst = append(dst, s.Owner[:]...)
	dst = append(dst, s.Request[:]...)
	dst = append(dst, s.Asked)
	return append(dst, s.Node...)
}

// ParseState reads what Append wrote; false for anything else.
func ParseState(b []byte) (State, bool) {
	var s State
	if len(b) < stateBytes {
		return s, false
	}
	s.Until = time.UnixMilli(int64(binary.BigEndian.Uint64(b)))
	copy(s.Nonce[:], b[8:])
	copy(s.Owner[:], b[24:])
	copy(s.Request[:], b[40:])
	s.Asked = b[stateBytes-1]
	s.Node = string(b[stateBytes:])
	return s, true
}

// Digest is that of a request: of the words that say where it goes and what it names, and of its raw arguments, in which
// white space does not count.
func Digest(arguments []byte, words ...string) [32]byte {
	h := sha256.New()
	part := func(b []byte) {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		_, _ = h.Write(b)
	}
	for _, w := range words {
		part([]byte(w))
	}
	var flat bytes.Buffer
	if json.Compact(&flat, arguments) != nil {
		flat.Reset()
	}
	part(flat.Bytes())
	return [32]byte(h.Sum(nil))
}
