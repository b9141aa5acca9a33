package upstream

import (
	"context"
	"time"
)

// streamSource reads a connection for a stream of events: with a limit to how long nothing may come, and at a pace. As much
// as the largest event may come at once; a server that sends without end after that is slowed down by not being read, and
// takes no more of this node's time than its share.
type streamSource struct {
	c    *conn
	ctx  context.Context
	idle time.Duration
	rate int // bytes a second
	now  func() time.Time

	credit, most int
	last         time.Time
}

// Read implements io.Reader.
func (s *streamSource) Read(p []byte) (int, error) {
	if s.credit <= 0 {
		if err := s.earn(); err != nil {
			return 0, err
		}
	}
	err := s.c.nc.SetReadDeadline(s.now().Add(s.idle))
	if s.ctx.Err() != nil { // after this line, abort comes later than the deadline above, and wins
		return 0, s.ctx.Err()
	}
	if err != nil {
		return 0, err
	}
	n, err := s.c.nc.Read(p)
	s.credit -= n
	return n, err
}

// earn waits until there is something to spend.
func (s *streamSource) earn() error {
	const slice = 50 * time.Millisecond
	s.refill()
	for s.credit <= 0 {
		t := time.NewTimer(slice)
		select {
		case <-s.ctx.Done():
			t.Stop()
			return s.ctx.Err()
		case <-t.C:
		}
		s.refill()
	}
	return nil
}

func (s *streamSource) refill() {
	now := s.now()
	gained := now.Sub(s.last).Seconds() * float64(s.rate)
	s.last = now
	s.credit = min(s.most, s.credit+int(min(gained, float64(s.most))))
}
