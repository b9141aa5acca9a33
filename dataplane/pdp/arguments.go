package pdp

import (
	"sync"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/schema"
)

// checkArguments has each tool's approved input schema compiled when it is first called, once for each head.
func (t *Tenant) checkArguments() {
	for _, s := range t.Servers {
		for i := range s.Tools {
			raw := s.Tools[i].Raw
			s.Tools[i].input = sync.OnceValues(func() (*schema.Schema, error) {
				at := mcp.Member(raw, "inputSchema")
				if !at.Present() {
					return schema.Compile([]byte("true"))
				}
				return schema.Compile(raw[at.Start:at.End])
			})
		}
	}
}

// CheckArguments holds the raw arguments of a call, nil for none, to the approved input schema, where the tenant wants
// that. Its errors are those of package schema.
func (t *Tool) CheckArguments(args []byte) error {
	if t.input == nil {
		return nil
	}
	s, err := t.input()
	if err != nil {
		return err
	}
	if args == nil {
		args = []byte("{}")
	}
	return s.Check(args)
}
