// Package resume keeps what was said on streams, for clients that lost one and come back for the rest: so many events of each,
// so many bytes of each and of all, so long. It knows no protocol: an event is bytes and has a number, from 1, in its stream.
package resume

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"
)

// Config configures Streams. Zero values take the defaults named.
type Config struct {
	// MaxEvents and MaxBytes bound what is kept of one stream: 256 events, 1 MiB.
	MaxEvents, MaxBytes int
	// MaxStreams bounds the streams: 16,384; MaxTotal what is kept of all of them: 64 MiB.
	MaxStreams, MaxTotal int
	// Keep is how long a stream outlasts its last reader: a minute.
	Keep time.Duration
}

// Name names a stream of a session: the session's hash, and a number that nobody can guess.
type Name struct {
	Session [16]byte
	Number  uint64
}

// Streams are the streams of one node.
type Streams struct {
	cfg Config

	mu    sync.Mutex
	all   map[Name]*Stream // guarded by mu
	total int              // guarded by mu; bytes kept
}

// Stream is one stream: one writer, and one reader at a time. Its fields are guarded by Streams.mu.
type Stream struct {
	name Name
	of   *Streams
	// kept are the newest events; last is the number of the newest one.
	kept  [][]byte
	bytes int
	last  uint64
	more  chan struct{} // closed when there is more to read; nil while nobody waits
	// reading is the newest reader's; read says that they are still there.
	reading     *Reading
	read        bool
	ended, gone bool
	timer       *time.Timer
	lost        func()
	state       any
}

// New makes room for streams.
func New(cfg Config) *Streams {
	or := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	or(&cfg.MaxEvents, 256)
	or(&cfg.MaxBytes, 1<<20)
	or(&cfg.MaxStreams, 16384)
	or(&cfg.MaxTotal, 64<<20)
	if cfg.Keep <= 0 {
		cfg.Keep = time.Minute
	}
	return &Streams{cfg: cfg, all: map[Name]*Stream{}}
}

// Open makes a stream, read by whoever makes it; nil when there is no room. lost is called, on a goroutine of its own, when
// nobody reads the stream for as long as it is kept and it has not ended.
func (s *Streams) Open(session [16]byte, lost func()) (*Stream, *Reading) {
	var number [8]byte
	_, _ = rand.Read(number[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) >= s.cfg.MaxStreams {
		return nil, nil
	}
	x := &Stream{
		name: Name{session, binary.BigEndian.Uint64(number[:])}, of: s, lost: lost,
		read: true, reading: &Reading{Taken: make(chan struct{})},
	}
	s.all[x.name] = x
	return x, x.reading
}

// Take makes the caller the reader of a stream; false when nothing is known of it.
func (s *Streams) Take(name Name) (x *Stream, r *Reading, found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x = s.all[name]
	if x == nil {
		return nil, nil, false
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	close(x.reading.Taken)
	x.reading, x.read = &Reading{Taken: make(chan struct{}), Left: x.state}, true
	x.state = nil
	return x, x.reading, true
}

// Reading is what a reader holds of a stream.
type Reading struct {
	// Taken is closed when another reader takes over.
	Taken chan struct{}
	// Left is what the last reader left behind for this one.
	Left any
}

// Len counts the streams and the bytes that are kept.
func (s *Streams) Len() (streams, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all), s.total
}

// End forgets the streams of a session.
func (s *Streams) End(session [16]byte) {
	s.drop(func(x *Stream) bool { return x.name.Session == session })
}

// Close forgets the streams that nobody reads, as if their time were over.
func (s *Streams) Close() { s.drop(func(x *Stream) bool { return !x.read }) }

func (s *Streams) drop(pick func(*Stream) bool) {
	var lost []func()
	s.mu.Lock()
	for _, x := range s.all {
		if pick(x) {
			lost = append(lost, x.forget())
		}
	}
	s.mu.Unlock()
	for _, f := range lost {
		f()
	}
}

// Name is the stream's.
func (x *Stream) Name() Name { return x.name }

// Next is the number that the next event will have.
func (x *Stream) Next() uint64 {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	return x.last + 1
}

// Append keeps an event, which must not be changed afterwards, and wakes the reader.
func (x *Stream) Append(event []byte) {
	s := x.of
	s.mu.Lock()
	defer s.mu.Unlock()
	x.last++
	x.wake()
	if x.gone {
		return
	}
	x.kept = append(x.kept, event)
	x.bytes += len(event)
	s.total += len(event)
	for len(x.kept) > 0 && (len(x.kept) > s.cfg.MaxEvents || x.bytes > s.cfg.MaxBytes || s.total > s.cfg.MaxTotal) {
		x.bytes -= len(x.kept[0])
		s.total -= len(x.kept[0])
		x.kept[0] = nil
		x.kept = x.kept[1:]
	}
}

// wake needs mu.
func (x *Stream) wake() {
	if x.more != nil {
		close(x.more)
		x.more = nil
	}
}

// After returns the events after one; whole is false when some of them are not kept any more, or were never there. more is
// closed when there are further ones, or the stream has ended; ended says that no more will come.
func (x *Stream) After(number uint64) (events [][]byte, more <-chan struct{}, ended, whole bool) {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	first := x.last - uint64(len(x.kept)) // the number before the first one kept
	if number < first || number > x.last || x.gone {
		return nil, nil, true, false
	}
	if x.more == nil {
		x.more = make(chan struct{})
	}
	return append([][]byte(nil), x.kept[number-first:]...), x.more, x.ended, true
}

// Finish says that no more will be written; the stream is kept a while for whoever has not read it.
func (x *Stream) Finish() {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	x.ended = true
	x.wake()
	x.wait()
}

// Leave says that a reader is gone, and what it leaves to the next one; nothing when another one has taken over.
func (x *Stream) Leave(r *Reading, state any) {
	x.of.mu.Lock()
	defer x.of.mu.Unlock()
	if x.reading != r || !x.read {
		return
	}
	x.read, x.state = false, state
	x.wait()
}

// wait needs mu.
func (x *Stream) wait() {
	if x.gone {
		return
	}
	if x.timer != nil {
		x.timer.Stop()
	}
	x.timer = time.AfterFunc(x.of.cfg.Keep, func() {
		x.of.mu.Lock()
		if x.read && !x.ended {
			x.of.mu.Unlock()
			return
		}
		lost := x.forget()
		x.of.mu.Unlock()
		lost()
	})
}

// forget needs mu; what it returns is to be called without.
func (x *Stream) forget() (lost func()) {
	if x.gone {
		return func() {}
	}
	x.gone = true
	delete(x.of.all, x.name)
	x.of.total -= x.bytes
	x.kept, x.bytes = nil, 0
	x.wake()
	if x.timer != nil {
		x.timer.Stop()
	}
	if x.ended || x.lost == nil {
		return func() {}
	}
	return x.lost
}
