package upstream

import (
	"net/url"
)

// State is how an upstream's circuit breaker stands.
type State int

// The states of a breaker.
const (
	Closed State = iota
	HalfOpen
	Open
)

// State tells how the breaker of the upstream at an address stands. One that was never called is closed.
func (c *Client) State(address string) State {
	u, err := url.Parse(address)
	if err != nil {
		return Closed
	}
	c.mu.Lock()
	g := c.gates[u.Scheme+"://"+u.Host]
	c.mu.Unlock()
	if g == nil {
		return Closed
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.openTill.IsZero():
		return Closed
	case g.trying || !c.cfg.Now().Before(g.openTill):
		return HalfOpen
	}
	return Open
}
