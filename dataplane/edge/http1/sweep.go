package http1

import (
	"net/http"
	"time"
)

const (
	// parkAfter is the pause after which a connection gives its buffers back.
	parkAfter = time.Second
	// watchAfter is how long a request has lasted when its client begins to be watched.
	watchAfter = 20 * time.Millisecond
	// firstWords is how long a connection that is new may stay silent when the server stops.
	firstWords = 500 * time.Millisecond
)

// setClock moves the server's clock.
func (s *Server) setClock(now time.Time) {
	s.clock.Store(int64(now.Sub(s.began)) + 1)
	line := make([]byte, 0, 64)
	line = append(line, "Date: "...)
	line = now.UTC().AppendFormat(line, http.TimeFormat)
	line = append(line, "\r\n"...)
	if old := s.date.Load(); old == nil || string(*old) != string(line) {
		s.date.Store(&line)
	}
}

// sweep looks after all connections until there are none.
func (s *Server) sweep() {
	tick := time.NewTicker(s.tick)
	defer tick.Stop()
	for now := range tick.C {
		s.setClock(now)
		at := s.clock.Load()
		s.mu.Lock()
		if len(s.conns) == 0 {
			s.sweeping = false
			s.mu.Unlock()
			return
		}
		for _, c := range s.conns {
			c.mu.Lock()
			s.look(c, at)
			c.mu.Unlock()
		}
		s.mu.Unlock()
	}
}

// look does what time demands of one connection, whose lock is held.
func (s *Server) look(c *conn, now int64) {
	age := time.Duration(now - c.since)
	switch c.state {
	case stateNew, stateHead:
		switch {
		case age > s.cfg.HeaderTimeout && c.kick != kickSlow:
			c.kick = kickSlow
			_ = c.nc.SetReadDeadline(past)
		case c.state == stateNew && s.draining() && age > firstWords:
			c.shut()
		}
	case stateIdle, stateParked:
		switch {
		case age > s.cfg.IdleTimeout || s.draining():
			c.shut()
		case c.state == stateIdle && age > parkAfter && c.kick == kickNone:
			c.kick = kickPark
			_ = c.nc.SetReadDeadline(past)
		}
	case stateRunning:
		c.x.expire(now)
		if c.watch == 0 && age > watchAfter && c.raw != nil {
			c.watchLeaving()
		}
	case stateClosing, stateClosed:
	}
	if c.writing != 0 && c.wantWrite.IsZero() && time.Duration(now-c.writing) > s.cfg.WriteTimeout {
		c.hasWrite = past
		_ = c.nc.SetWriteDeadline(past)
	}
}
