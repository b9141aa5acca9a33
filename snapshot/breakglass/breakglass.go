// Package breakglass reads and writes files of signed kills: what an operator carries to a cell that hears nobody.
//
// A file is text, one block for each kill, and nothing else:
//
//	-----BEGIN MCPVAULT KILL-----
//	base64 of the DSSE envelope, in lines of at most 64 characters
//	-----END MCPVAULT KILL-----
//
// It is bounded in size and in the number of its kills. There is one way to write a list of kills: what differs from it,
// be it a space, a comment or an empty line, is refused, and with it the whole file. A kill can only deny, so a key that is
// trusted with nothing else, kept where an incident can reach it, is enough to sign one.
package breakglass

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// The bounds of a file.
const (
	MaxFile  = 1 << 20
	MaxKills = 1000
)

// What reading refuses; every error wraps one of these, one of snapshot/seal, or comes from the reader.
var (
	ErrFormat = errors.New("not a file of kills")
	ErrSize   = errors.New("too large")
)

// BlockError says which block of a file is to blame, counted from 1.
type BlockError struct {
	Block int
	Err   error
}

func (e *BlockError) Error() string { return fmt.Sprintf("block %d: %v", e.Block, e.Err) }

// Unwrap is the reason.
func (e *BlockError) Unwrap() error { return e.Err }

// Kill is a kill that was verified.
type Kill struct {
	Body *snapshotv1.Kill
	// Envelope is the signed form, which is what nodes take and hand on.
	Envelope []byte
}

const (
	begin = "-----BEGIN MCPVAULT KILL-----\n"
	end   = "-----END MCPVAULT KILL-----\n"
	line  = 64
)

// Encode writes kills as a file.
func Encode(envelopes ...[]byte) ([]byte, error) {
	if len(envelopes) == 0 || len(envelopes) > MaxKills {
		return nil, fmt.Errorf("%d kills, from 1 to %d: %w", len(envelopes), MaxKills, ErrSize)
	}
	var b bytes.Buffer
	for i, env := range envelopes {
		if len(env) == 0 || len(env) > seal.MaxKill {
			return nil, &BlockError{i + 1, fmt.Errorf("envelope of %d bytes, at most %d: %w", len(env), seal.MaxKill, ErrSize)}
		}
		encode(&b, env)
	}
	if b.Len() > MaxFile {
		return nil, fmt.Errorf("file of %d bytes, at most %d: %w", b.Len(), MaxFile, ErrSize)
	}
	return b.Bytes(), nil
}

func encode(b *bytes.Buffer, env []byte) {
	b.WriteString(begin)
	text := base64.StdEncoding.EncodeToString(env)
	for len(text) > 0 {
		n := min(line, len(text))
		b.WriteString(text[:n])
		b.WriteByte('\n')
		text = text[n:]
	}
	b.WriteString(end)
}

// Parse takes a file apart. It checks no signature.
func Parse(file []byte) (envelopes [][]byte, err error) {
	if len(file) > MaxFile {
		return nil, fmt.Errorf("file of %d bytes, at most %d: %w", len(file), MaxFile, ErrSize)
	}
	for rest := file; len(rest) > 0; {
		if len(envelopes) == MaxKills {
			return nil, fmt.Errorf("more than %d kills: %w", MaxKills, ErrSize)
		}
		var env []byte
		if env, rest, err = block(rest); err != nil {
			return nil, &BlockError{len(envelopes) + 1, err}
		}
		envelopes = append(envelopes, env)
	}
	if len(envelopes) == 0 {
		return nil, fmt.Errorf("it is empty: %w", ErrFormat)
	}
	return envelopes, nil
}

// block takes the first block off. What it holds is written again and compared: so there is one form only.
func block(file []byte) (env, rest []byte, err error) {
	body, ok := bytes.CutPrefix(file, []byte(begin))
	if !ok {
		return nil, nil, fmt.Errorf("does not begin with %q: %w", begin[:len(begin)-1], ErrFormat)
	}
	at := bytes.Index(body, []byte(end))
	if at < 0 {
		return nil, nil, fmt.Errorf("does not end with %q: %w", end[:len(end)-1], ErrFormat)
	}
	if at > base64.StdEncoding.EncodedLen(seal.MaxKill)*(line+1)/line+1 {
		return nil, nil, fmt.Errorf("%d bytes, the envelope has at most %d: %w", at, seal.MaxKill, ErrSize)
	}
	env = make([]byte, base64.StdEncoding.DecodedLen(at))
	n, err := base64.StdEncoding.Strict().Decode(env, body[:at])
	if err != nil || n == 0 {
		return nil, nil, fmt.Errorf("is not base64: %w", ErrFormat)
	}
	env = env[:n]
	var again bytes.Buffer
	encode(&again, env)
	if whole := file[:len(begin)+at+len(end)]; !bytes.Equal(again.Bytes(), whole) {
		return nil, nil, fmt.Errorf("is not written in lines of %d characters: %w", line, ErrFormat)
	}
	return env, body[at+len(end):], nil
}

// Open verifies every kill of a file against the roots that are believed. A file with one kill that does not verify is
// refused whole, and the error, a BlockError, says which: half of a file is not what somebody has signed off.
func Open(file []byte, trust *seal.Trust) ([]Kill, error) {
	envelopes, err := Parse(file)
	if err != nil {
		return nil, err
	}
	kills := make([]Kill, 0, len(envelopes))
	ids := map[string]bool{}
	for i, env := range envelopes {
		body, err := trust.OpenKill(env)
		if err != nil {
			return nil, &BlockError{i + 1, err}
		}
		if ids[body.GetId()] {
			return nil, &BlockError{i + 1, fmt.Errorf("kill %s twice: %w", body.GetId(), ErrFormat)}
		}
		ids[body.GetId()] = true
		kills = append(kills, Kill{body, env})
	}
	return kills, nil
}

// Read opens a file from a reader, and reads no more of it than a file may have.
func Read(r io.Reader, trust *seal.Trust) ([]Kill, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read kills: %w", err)
	}
	return Open(b, trust)
}
