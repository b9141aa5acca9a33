package manage

import (
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestRequirementsAreReadAsTheyAreWritten(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"*=mcp", "*/read=tools:read", "*/write=tools:write|admin|root", "crm=crm", "crm/destructive=crm:admin"} {
		r, err := parseRequirement(text)
		if err != nil || requirement(r) != text {
			t.Errorf("%s: %v, %v", text, r, err)
		}
	}
	for _, text := range []string{"", "mcp", "=mcp", "*=", "*=a||b", "*/all=mcp", "/read=mcp", "*/READ=mcp"} {
		if r, err := parseRequirement(text); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%q was taken: %v", text, r)
		}
	}
}
