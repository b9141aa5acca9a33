package http1

// Parked counts the connections that wait without buffers.
func Parked(s *Server) int {
	n := 0
	s.each(func(c *conn) {
		if c.state == stateParked && c.buf == nil {
			n++
		}
	})
	return n
}
