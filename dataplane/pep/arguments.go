package pep

import (
	"errors"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/kit/schema"
)

// badArguments answers a call that the caller may make, with arguments that the tool's approved schema does not allow.
// Where the schema itself cannot be used, policy that demands the check is not met either.
func (x *exchange) badArguments(err error) *answer {
	reason, message := "schema_unusable", "the tool's approved schema cannot be checked, and policy demands that arguments are; an administrator can turn that off: mcpvault settings set --check-arguments=false"
	var mismatch *schema.Mismatch
	switch {
	case errors.As(err, &mismatch):
		reason, message = "argument_schema", "the arguments do not fit the tool's input schema: "+mcp.Echo(mismatch.Error())
	case errors.Is(err, schema.ErrTooCostly):
		reason, message = "argument_cost", "the arguments are too large or too deep to be checked against the tool's input schema"
	default:
		x.p.log.Warn("a tool's schema cannot be used", "server", x.server.Name, "tool", x.rec.GetItem(), "error", err, "request_id", x.rec.GetId())
	}
	x.denied(reason)
	x.visible = true
	d := mcp.ErrorData{DecisionID: x.rec.GetId(), Reason: reason}
	return x.refused(reason, mcp.CodeInvalidParams, message, &d)
}
