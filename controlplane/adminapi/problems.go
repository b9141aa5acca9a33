package adminapi

import (
	"context"
	"errors"
	"strings"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// Every error carries a google.rpc.ErrorInfo of this domain, whose reason is the problem's code.
const errorDomain = "mcpvault"

// Keys of the ErrorInfo's metadata.
const (
	metaWhat      = "what"
	metaFix       = "fix"
	metaRequestID = "request_id"
)

// expose makes what the wire may show of an error: a problem in full but for its cause, what the protocol itself found
// wrong as it is, and of everything else only that it happened.
func expose(ctx context.Context, err error, requestID string) *connect.Error {
	if err == nil {
		return nil
	}
	if p, ok := problem.As(err); ok {
		return withInfo(connect.NewError(rpcCode(p.Code), p.What), p, requestID)
	}
	var invalid *protovalidate.ValidationError
	if errors.As(err, &invalid) {
		return exposeInvalid(err, invalid, requestID)
	}
	var own *connect.Error
	switch {
	case errors.As(err, &own) && !own.IsRemote():
		return withInfo(own, problem.New(problem.FromRPC(own.Code().String()), own.Message(), ""), requestID)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		p := problem.New(problem.Timeout, "the request took too long", "try again; if it goes on, look at `mcpvault doctor`")
		return withInfo(connect.NewError(connect.CodeDeadlineExceeded, p.What), p, requestID)
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, "the request was given up")
	}
	p := problem.Newf(problem.Internal, "look for "+requestID+" in the control plane's log", "internal error, request %s", requestID)
	return withInfo(connect.NewError(connect.CodeInternal, p.What), p, requestID)
}

// exposeInvalid tells each field that a rule of the protos refuses, for people and, as violations, for programs.
func exposeInvalid(err error, invalid *protovalidate.ValidationError, requestID string) *connect.Error {
	var words []string
	for _, v := range invalid.Violations {
		words = append(words, v.String())
	}
	p := problem.New(problem.Invalid, strings.Join(words, "; "), "correct the field and try again")
	shown := withInfo(connect.NewError(connect.CodeInvalidArgument, p.What), p, requestID)
	if detail, derr := connectproto.NewErrorDetail(invalid.ToProto()); derr == nil {
		shown = shown.WithDetail(detail)
	}
	return shown.WithCause(err)
}

func withInfo(e *connect.Error, p *problem.Problem, requestID string) *connect.Error {
	detail, err := connectproto.NewErrorDetail(&errdetails.ErrorInfo{
		Reason: string(p.Code), Domain: errorDomain,
		Metadata: map[string]string{metaWhat: p.What, metaFix: p.Fix, metaRequestID: requestID},
	})
	if err != nil {
		// Without the detail the code and the sentence still arrive.
		return e
	}
	return e.WithDetail(detail)
}

// rpcCode is the Connect code of the problem's kind, by the one table in kit/problem.
func rpcCode(c problem.Code) connect.Code {
	var code connect.Code
	if err := code.UnmarshalText([]byte(c.RPC())); err != nil {
		return connect.CodeInternal
	}
	return code
}

// ProblemOf turns a client's error back into the problem that the server told, for whoever shows it to a person. Errors
// that no server told, such as a refused connection, come back as unavailable.
func ProblemOf(err error) *problem.Problem {
	if p, ok := problem.As(err); ok {
		return p
	}
	var remote *connect.Error
	if !errors.As(err, &remote) {
		return problem.New(problem.Unavailable, err.Error(), "").Because(err)
	}
	for _, d := range remote.Details() {
		msg, derr := connectproto.UnmarshalErrorDetail(d)
		info, ok := msg.(*errdetails.ErrorInfo)
		if derr != nil || !ok || info.GetDomain() != errorDomain {
			continue
		}
		return problem.New(problem.Code(info.GetReason()), info.GetMetadata()[metaWhat], info.GetMetadata()[metaFix]).Because(err)
	}
	return problem.New(problem.FromRPC(remote.Code().String()), remote.Message(), "").Because(err)
}
