package controlplane

import "slices"

// Guards are what a tenant's cells do about what servers say and ask; "" is the default.
type Guards struct {
	// Results: strip, pass or block. Questions: block or pass. ChangedTools: refuse or serve.
	Results, Questions, ChangedTools string
	// CheckArguments holds calls to the approved input schemas.
	CheckArguments bool
	// Origins are those that questions may lead to besides a server's own, Forbidden what no server may ask for. Sorted.
	Origins, Forbidden []string
}

// Equal reports whether both are the same.
func (g Guards) Equal(o Guards) bool {
	return g.Results == o.Results && g.Questions == o.Questions && g.ChangedTools == o.ChangedTools && g.CheckArguments == o.CheckArguments &&
		slices.Equal(g.Origins, o.Origins) && slices.Equal(g.Forbidden, o.Forbidden)
}
