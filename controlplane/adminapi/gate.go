package adminapi

import (
	"context"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// gate decides who comes in.
type gate struct {
	auth    Authenticator
	tenants Tenants
	rules   map[string]rule
}

// admit lets a call pass when its token is good and its holder may call the procedure. The message is not read before.
func (g *gate) admit(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		token, err := bearer(ctx)
		if err != nil {
			return err
		}
		caller, err := g.auth.Authenticate(ctx, token)
		if err != nil {
			return err
		}
		c := callFrom(ctx)
		c.principal, c.tenant = caller.Principal, caller.Tenant
		caller.RequestID = c.id
		rule, known := g.rules[spec.Procedure]
		if !known {
			// One that is served and that nobody has put into the table is refused as well.
			return noProcedure(spec)
		}
		if !rule.allows(caller.Roles) {
			return problem.Newf(problem.Denied, "ask an "+rule.role+" to do it, or to give you the role",
				"%s may not call %s: it needs the admin role %s", caller.Principal, short(spec.Procedure), rule.role)
		}
		return next(controlplane.WithCaller(ctx, caller), spec, stream)
	}
}

func noProcedure(spec connect.Spec) error {
	return connect.NewError(connect.CodeUnimplemented, "there is no procedure "+spec.Procedure)
}

func bearer(ctx context.Context) (string, error) {
	info, ok := connect.CallInfoForServerContext(ctx)
	if !ok {
		return "", fmt.Errorf("a call without its call info")
	}
	values := info.RequestHeader().Values("Authorization")
	if len(values) == 1 {
		scheme, token, _ := strings.Cut(values[0], " ")
		if strings.EqualFold(scheme, "bearer") && token != "" {
			return token, nil
		}
	}
	info.ResponseHeader().Set("WWW-Authenticate", "Bearer")
	return "", problem.New(problem.Unauthenticated, "the request has no bearer token", "log in: mcpvault login")
}

// scope finds the tenant that the request is about. Only then is the caller complete.
func (g *gate) scope(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
		if g.rules[spec.Procedure].scope != ofTenant {
			return next(ctx, spec, stream)
		}
		msg, err := newInput(spec)
		if err != nil {
			return err
		}
		if err := stream.Receive(msg); err != nil {
			return err
		}
		caller := controlplane.CallerFrom(ctx)
		named, ok := msg.(interface{ GetTenant() string })
		if !ok {
			return fmt.Errorf("%s is about a tenant, but %T names none", spec.Procedure, msg)
		}
		if err := g.settle(ctx, &caller, named.GetTenant()); err != nil {
			return err
		}
		callFrom(ctx).tenant = caller.Tenant
		return next(controlplane.WithCaller(ctx, caller), spec, &replay{ServerStream: stream, first: msg})
	}
}

// settle moves an owner into the tenant that they named. For everybody else another tenant is closed, whether there is
// one of that name or not.
func (g *gate) settle(ctx context.Context, c *controlplane.Caller, name string) error {
	if name == "" || name == c.Home {
		return nil
	}
	if !c.Has(controlplane.RoleOwner) {
		return problem.Newf(problem.Denied, "leave the tenant out, or log in there", "%s is of tenant %s and may not act in %s", c.Principal, c.Home, name)
	}
	t, err := g.tenants.TenantByName(ctx, name)
	if err != nil {
		return err
	}
	c.TenantID, c.Tenant = t.ID, t.Name
	return nil
}

// newInput makes an empty request of the procedure.
func newInput(spec connect.Spec) (proto.Message, error) {
	method, ok := spec.Schema.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s has no schema", spec.Procedure)
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(method.Input().FullName())
	if err != nil {
		return nil, fmt.Errorf("find the request of %s: %w", spec.Procedure, err)
	}
	return kind.New().Interface(), nil
}

// replay gives the message that was read already to whoever asks next.
type replay struct {
	connect.ServerStream
	first proto.Message
}

func (r *replay) Receive(msg any) error {
	if r.first == nil {
		return r.ServerStream.Receive(msg)
	}
	to, ok := msg.(proto.Message)
	if !ok {
		return fmt.Errorf("a request is read into %T: %w", msg, io.ErrUnexpectedEOF)
	}
	proto.Reset(to)
	proto.Merge(to, r.first)
	r.first = nil
	return nil
}

// short is a procedure as people say it: DirectoryService/CreateUser.
func short(procedure string) string {
	return procedure[strings.LastIndex(procedure, ".")+1:]
}
