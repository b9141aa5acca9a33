// Package session makes and reads the session ids that legacy clients carry, and keeps the upstream sessions that the
// gateway opens on their behalf.
//
// An id is sealed (AES-256-GCM) under a key that all nodes of a cell share: any of them opens it without asking, and
// what does not open is unknown. It says whose session it is, on which server, and which upstream session is behind it.
// It is bound to issuer and subject, never to the bytes of a token; whether they fit is for the caller to compare. That a
// session was opened, when it was last used and that it ended is what its lease says, which the cell's log carries to all
// nodes.
package session

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/snapshot"
)

// ErrUnknown is the answer for every id that is no live session: forged, of another key, ended or too old.
var ErrUnknown = errors.New("session unknown")

// MaxID bounds an id in bytes; a longer one is malformed.
const MaxID = 2048

// MaxUpstreamID bounds the session id of an upstream.
const MaxUpstreamID = 1024

// Key is one key of the ring.
type Key struct {
	ID     byte
	Secret [32]byte
}

// Owner names a caller for as long as their session lives: the hash of issuer and subject.
type Owner [16]byte

// OwnerOf hashes issuer and subject.
func OwnerOf(issuer, subject string) Owner {
	var space [256]byte
	b := binary.BigEndian.AppendUint64(space[:0], uint64(len(issuer)))
	sum := sha256.Sum256(append(append(b, issuer...), subject...))
	return Owner(sum[:16])
}

// Claims is what an id says.
type Claims struct {
	Tenant snapshot.TenantID
	// Server is "" on the aggregate.
	Server string
	Owner  Owner
	// Upstream is the upstream's session id; "" when it gave none.
	Upstream string
	// Owned says that the gateway leads the dialogue itself.
	Owned bool
	// Revision was negotiated at initialize.
	Revision string
	// Offers is what the client said at initialize that it can do for a server, in an owned session.
	Offers  string
	Created time.Time
}

// Config configures Sessions.
type Config struct {
	// Keys: the first one seals, all of them open.
	Keys []Key
	// MaxAge is for how long an id opens at all. 0 means MaxMax, the longest that a tenant may let its sessions live.
	MaxAge time.Duration
	Now    func() time.Time
}

// Sessions seals and opens ids. It is safe for concurrent use.
type Sessions struct {
	cfg  Config
	keys atomic.Pointer[ring]
}

// ErrNoKey says that the cell has agreed on no key yet: no session can be made that another node would open.
var ErrNoKey = errors.New("the cell has no session key yet")

// ring is one set of keys; it is replaced, never changed.
type ring struct {
	first byte
	aeads map[byte]cipher.AEAD
	// own means that nobody else has the key: good for cursors, which a client takes to another node at worst to hear that
	// its list has changed, and not for sessions.
	own bool
}

// New makes Sessions. Without keys every session id is unknown and none can be made, until Rotate brings some.
func New(cfg Config) (*Sessions, error) {
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = MaxMax
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Sessions{cfg: cfg}
	if err := s.Rotate(cfg.Keys); err != nil {
		return nil, err
	}
	return s, nil
}

// Rotate replaces the keys. The first one seals from now on; an id sealed under a key that is gone is unknown.
func (s *Sessions) Rotate(keys []Key) error {
	r := &ring{aeads: make(map[byte]cipher.AEAD, len(keys)), own: len(keys) == 0}
	if r.own {
		var k Key
		if _, err := rand.Read(k.Secret[:]); err != nil {
			return fmt.Errorf("make a session key: %w", err)
		}
		keys = []Key{k}
	}
	r.first = keys[0].ID
	for _, k := range keys {
		block, err := aes.NewCipher(k.Secret[:])
		if err != nil {
			return fmt.Errorf("session key %d: %w", k.ID, err)
		}
		if r.aeads[k.ID], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return fmt.Errorf("session key %d: %w", k.ID, err)
		}
	}
	s.keys.Store(r)
	return nil
}

// The kinds of sealed text; a session id never opens as a cursor.
const (
	kindSession byte = 1
	kindCursor  byte = 2
)

// seal needs a key.
func (r *ring) seal(kind byte, plain []byte) string {
	head := []byte{kind, r.first}
	return base64.RawURLEncoding.EncodeToString(r.aeads[r.first].Seal(head, nil, plain, head)) //nolint:gosec // the cipher makes its own nonce
}

func (s *Sessions) open(kind byte, text string) ([]byte, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) < 2 || raw[0] != kind {
		return nil, ErrUnknown
	}
	aead, ok := s.keys.Load().aeads[raw[1]]
	if !ok {
		return nil, ErrUnknown
	}
	plain, err := aead.Open(nil, nil, raw[2:], raw[:2])
	if err != nil {
		return nil, ErrUnknown
	}
	return plain, nil
}

// Seal makes a new id. Two ids are never equal, even of equal claims.
func (s *Sessions) Seal(c Claims) (string, error) {
	r := s.keys.Load()
	if r.own {
		return "", ErrNoKey
	}
	if len(c.Upstream) > MaxUpstreamID || !Visible(c.Upstream) {
		return "", fmt.Errorf("the upstream's session id is malformed")
	}
	var salt [16]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return "", fmt.Errorf("seal session: %w", err)
	}
	b := append(make([]byte, 0, 256), salt[:]...)
	b = append(b, c.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Created.UnixMilli()))
	owned := byte(0)
	if c.Owned {
		owned = 1
	}
	b = append(b, owned)
	for _, f := range []string{string(c.Tenant), c.Server, c.Revision, c.Upstream, c.Offers} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(f)))
		b = append(b, f...)
	}
	return r.seal(kindSession, b), nil
}

// Open reads an id; ErrUnknown when the cell has not sealed it, or too long ago. Whether it still lives, its lease says.
func (s *Sessions) Open(id string) (Claims, error) {
	var c Claims
	b, err := s.open(kindSession, id)
	const fixed = 16 + 16 + 8 + 1
	if err != nil || len(b) < fixed {
		return c, ErrUnknown
	}
	copy(c.Owner[:], b[16:])
	c.Created = time.UnixMilli(int64(binary.BigEndian.Uint64(b[32:])))
	c.Owned = b[40] == 1
	b = b[fixed:]
	var fields [5]string
	for i := range fields {
		if len(b) == 0 && i == len(fields)-1 {
			break // sealed by a node that knew of no offers
		}
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return Claims{}, ErrUnknown
		}
		n := int(binary.BigEndian.Uint16(b))
		fields[i], b = string(b[2:2+n]), b[2+n:]
	}
	c.Tenant, c.Server, c.Revision, c.Upstream = snapshot.TenantID(fields[0]), fields[1], fields[2], fields[3]
	c.Offers = fields[4]
	if s.cfg.Now().Sub(c.Created) > s.cfg.MaxAge {
		return Claims{}, ErrUnknown
	}
	return c, nil
}

// Hash is how records and kills name a session.
func Hash(id string) [16]byte {
	h := sha256.Sum256([]byte(id))
	return [16]byte(h[:16])
}

// Visible reports whether s is visible ASCII, the alphabet of session ids.
func Visible(s string) bool {
	for i := range len(s) {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}

// WellFormed reports whether a client's id could be one at all.
func WellFormed(id string) bool { return id != "" && len(id) <= MaxID && Visible(id) }

// Cursor is a place in a list, good for one owner, one list and one version of the policy.
type Cursor struct {
	Owner   Owner
	List    string
	Version snapshot.Version
	Offset  int
}

// SealCursor makes a cursor's text.
func (s *Sessions) SealCursor(c Cursor) string {
	b := append(make([]byte, 0, 64), c.Owner[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.Version.Epoch))
	b = binary.BigEndian.AppendUint64(b, uint64(c.Version.Generation))
	b = binary.BigEndian.AppendUint32(b, uint32(c.Offset))
	return s.keys.Load().seal(kindCursor, append(b, c.List...))
}

// OpenCursor reads a cursor that was made for want, whose Offset does not count; ErrUnknown for any other.
func (s *Sessions) OpenCursor(text string, want Cursor) (int, error) {
	if len(text) > MaxID {
		return 0, ErrUnknown
	}
	b, err := s.open(kindCursor, text)
	const fixed = 16 + 8 + 8 + 4
	if err != nil || len(b) < fixed {
		return 0, ErrUnknown
	}
	if Owner(b[:16]) != want.Owner || binary.BigEndian.Uint64(b[16:]) != uint64(want.Version.Epoch) ||
		binary.BigEndian.Uint64(b[24:]) != uint64(want.Version.Generation) || string(b[fixed:]) != want.List {
		return 0, ErrUnknown
	}
	return int(binary.BigEndian.Uint32(b[32:])), nil
}
