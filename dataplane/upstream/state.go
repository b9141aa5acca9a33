package upstream

// State is how an upstream's circuit breaker stands, numbered as its metric is.
type State int

// The states of a breaker.
const (
	Closed   = State(closed)
	HalfOpen = State(halfOpen)
	Open     = State(open)
)

// State tells how the breaker of the upstream at an address stands. One that was never called is closed.
func (c *Client) State(address string) State {
	t, ok := c.book.targets.Load(targetKey{url: address})
	if !ok {
		return Closed
	}
	b, _, _ := t.(*target).dest.gate.look(c.cfg.Now())
	return State(b)
}
