package edge

// Opening is the number of handshakes under way.
func (s *QUIC) Opening() int64 { return s.opening.Load() }
