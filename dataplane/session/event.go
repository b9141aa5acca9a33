package session

import "encoding/binary"

const kindEvent byte = 5

// Event is what the id of an event says: which event of which stream it is, and on which node that is kept.
type Event struct {
	// Session is the hash of the session that the stream belongs to.
	Session [16]byte
	Stream  uint64
	// Number counts the stream's events from 1; 0 is its beginning.
	Number uint64
	// Answer says that the stream brings the answer to a request, and not what a server says unasked.
	Answer bool
	Node   string
}

const eventBytes = 16 + 8 + 8 + 1

// SealEvent makes an event's id.
func (s *Sessions) SealEvent(e Event) string {
	b := append(make([]byte, 0, 64), e.Session[:]...)
	b = binary.BigEndian.AppendUint64(b, e.Stream)
	b = binary.BigEndian.AppendUint64(b, e.Number)
	answer := byte(0)
	if e.Answer {
		answer = 1
	}
	return s.keys.Load().seal(kindEvent, append(append(b, answer), e.Node...))
}

// OpenEvent reads what SealEvent made for the session, on any node that shares the keys; ErrUnknown for anything else.
func (s *Sessions) OpenEvent(text string, session [16]byte) (Event, error) {
	if len(text) > MaxID {
		return Event{}, ErrUnknown
	}
	b, err := s.open(kindEvent, text)
	if err != nil || len(b) < eventBytes || [16]byte(b) != session {
		return Event{}, ErrUnknown
	}
	return Event{
		Session: session, Stream: binary.BigEndian.Uint64(b[16:]), Number: binary.BigEndian.Uint64(b[24:]),
		Answer: b[32] == 1, Node: string(b[eventBytes:]),
	}, nil
}
