package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// fake answers as a control plane would, from a few slices.
type fake struct {
	adminv1connect.UnimplementedOrganisationServiceHandler
	adminv1connect.UnimplementedDirectoryServiceHandler
	adminv1connect.UnimplementedRegistryServiceHandler
	adminv1connect.UnimplementedEndpointServiceHandler
	adminv1connect.UnimplementedSettingsServiceHandler
	adminv1connect.UnimplementedAccessServiceHandler
	adminv1connect.UnimplementedPolicyServiceHandler
	adminv1connect.UnimplementedTokenServiceHandler
	adminv1connect.UnimplementedSnapshotServiceHandler
	adminv1connect.UnimplementedCellAdminServiceHandler
	adminv1connect.UnimplementedSessionServiceHandler
	adminv1connect.UnimplementedAuditServiceHandler
	adminv1connect.UnimplementedSystemServiceHandler

	mu     sync.Mutex // Guards grants.
	grants []*adminv1.Grant
}

const goodToken = "good"

// controlPlane serves a fake; every call needs the good token.
func controlPlane(t testing.TB) string {
	t.Helper()
	f := &fake{grants: []*adminv1.Grant{{Id: "g1", Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: "role:analyst", Target: "server:demo", CreatedMs: 1}}}
	server := connect.NewServer(func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			info, _ := connect.CallInfoForServerContext(ctx)
			if info.RequestHeader().Get("Authorization") != "Bearer "+goodToken {
				return refusal(connect.CodeUnauthenticated, "the token is not accepted", "log in again: mcpvault login")
			}
			return next(ctx, spec, stream)
		}
	})
	adminv1connect.RegisterOrganisationServiceHandler(server, f)
	adminv1connect.RegisterDirectoryServiceHandler(server, f)
	adminv1connect.RegisterRegistryServiceHandler(server, f)
	adminv1connect.RegisterEndpointServiceHandler(server, f)
	adminv1connect.RegisterSettingsServiceHandler(server, f)
	adminv1connect.RegisterAccessServiceHandler(server, f)
	adminv1connect.RegisterPolicyServiceHandler(server, f)
	adminv1connect.RegisterTokenServiceHandler(server, f)
	adminv1connect.RegisterSnapshotServiceHandler(server, f)
	adminv1connect.RegisterCellAdminServiceHandler(server, f)
	adminv1connect.RegisterSessionServiceHandler(server, f)
	adminv1connect.RegisterAuditServiceHandler(server, f)
	adminv1connect.RegisterSystemServiceHandler(server, f)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server)
	hs := httptest.NewServer(mux)
	t.Cleanup(hs.Close)
	return hs.URL
}

func refusal(code connect.Code, what, fix string) error {
	d, err := connectproto.NewErrorDetail(&errdetails.ErrorInfo{Domain: "mcpvault", Metadata: map[string]string{"fix": fix}})
	if err != nil {
		return err
	}
	return connect.NewError(code, what).WithDetail(d)
}

func (f *fake) ListTenants(context.Context, *adminv1.ListTenantsRequest) (*adminv1.ListTenantsResponse, error) {
	return &adminv1.ListTenantsResponse{Tenants: []*adminv1.Tenant{{Id: "t1", Name: "acme", Hosts: []string{"acme.localhost"}, CreatedMs: 1_700_000_000_000}}}, nil
}

func (f *fake) GetUser(_ context.Context, r *adminv1.GetUserRequest) (*adminv1.GetUserResponse, error) {
	if r.GetName() != "alice" {
		return nil, refusal(connect.CodeNotFound, "user "+r.GetName()+" does not exist", "see `mcpvault user list`")
	}
	return &adminv1.GetUserResponse{User: alice()}, nil
}

func alice() *adminv1.User {
	return &adminv1.User{Id: "u1", Name: "alice", Kind: adminv1.UserKind_USER_KIND_PERSON, Supervisor: "bob", Roles: []string{"analyst"}, DisplayName: "Al\x1b[31mice"}
}

func (f *fake) ListUsers(_ context.Context, r *adminv1.ListUsersRequest) (*adminv1.ListUsersResponse, error) {
	if r.GetPageToken() == "" {
		return &adminv1.ListUsersResponse{Users: []*adminv1.User{alice()}, NextPageToken: "2"}, nil
	}
	return &adminv1.ListUsersResponse{Users: []*adminv1.User{{Name: "ci", Kind: adminv1.UserKind_USER_KIND_SERVICE_ACCOUNT, Disabled: true}}}, nil
}

func (f *fake) CreateUser(_ context.Context, r *adminv1.CreateUserRequest) (*adminv1.CreateUserResponse, error) {
	return nil, refusal(connect.CodeAlreadyExists, "user "+r.GetName()+" exists already", "")
}

func (f *fake) SetUserDisabled(context.Context, *adminv1.SetUserDisabledRequest) (*adminv1.SetUserDisabledResponse, error) {
	return &adminv1.SetUserDisabledResponse{Revision: 9}, nil
}

func version() *adminv1.ServerVersion {
	return &adminv1.ServerVersion{
		Number: 2, Digest: "abc", State: adminv1.VersionState_VERSION_STATE_PENDING, ServerName: "payments", ServerVersion: "1.0.0",
		Tools: []*adminv1.Tool{{
			Name: "refund", Effect: snapshotv1.Effect_EFFECT_DESTRUCTIVE, Description: "pays back", Change: "added",
			Raw: []byte(`{"name":"refund","inputSchema":{"type":"object","properties":{"amount":{"type":"number"}}}}`),
		}},
	}
}

func (f *fake) GetServer(_ context.Context, r *adminv1.GetServerRequest) (*adminv1.GetServerResponse, error) {
	return &adminv1.GetServerResponse{Server: &adminv1.Server{Name: r.GetName(), Url: "http://x", LatestVersion: 2}, Version: version()}, nil
}

func (f *fake) ListServers(context.Context, *adminv1.ListServersRequest) (*adminv1.ListServersResponse, error) {
	return &adminv1.ListServersResponse{Servers: []*adminv1.Server{{Name: "payments"}, {Name: "demo"}}}, nil
}

func (f *fake) AddServer(_ context.Context, r *adminv1.AddServerRequest) (*adminv1.AddServerResponse, error) {
	s := &adminv1.Server{Name: r.GetName(), Url: r.GetUrl()}
	if strings.Contains(r.GetUrl(), "dead") {
		s.LastError = "connection refused"
		return &adminv1.AddServerResponse{Server: s}, nil
	}
	return &adminv1.AddServerResponse{Server: s, Version: version()}, nil
}

// ApproveVersion shows in the description what was asked for.
func (f *fake) ApproveVersion(_ context.Context, r *adminv1.ApproveVersionRequest) (*adminv1.ApproveVersionResponse, error) {
	said := fmt.Sprintf("source=%d default=%d tools=%v", r.GetSource(), r.GetDefaultEffect(), r.GetToolEffects())
	return &adminv1.ApproveVersionResponse{Server: &adminv1.Server{Name: r.GetName(), Description: said, PublishedVersion: 2}, Version: version(), Revision: 7}, nil
}

func (f *fake) CreateGrant(_ context.Context, r *adminv1.CreateGrantRequest) (*adminv1.CreateGrantResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := &adminv1.Grant{
		Id: fmt.Sprintf("g%d", len(f.grants)+1), Effect: r.GetEffect(), Subject: r.GetSubject(), Target: r.GetTarget(),
		Condition: r.GetCondition(), Reason: r.GetReason(), ExpiresMs: r.GetValidFor().AsDuration().Milliseconds(),
	}
	if l := r.GetLimits(); proto.Size(l) > 0 {
		// Spaces are not the same in every build of the library.
		g.Terms = []string{fmt.Sprintf("%d %d %v", r.GetNotBeforeMs(), r.GetNotAfterMs(), l)}
	}
	f.grants = append(f.grants, g)
	revision := uint64(7)
	if g.GetReason() == "slow" {
		revision = 1000
	}
	return &adminv1.CreateGrantResponse{Grant: g, Revision: revision}, nil
}

func (f *fake) DeleteGrants(_ context.Context, r *adminv1.DeleteGrantsRequest) (*adminv1.DeleteGrantsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &adminv1.DeleteGrantsResponse{Revision: 8}
	f.grants = slices.DeleteFunc(f.grants, func(g *adminv1.Grant) bool {
		gone := g.GetId() == r.GetId() || (g.GetSubject() == r.GetSubject() && g.GetTarget() == r.GetTarget() && g.GetEffect() == r.GetEffect())
		if gone {
			resp.Deleted = append(resp.Deleted, g)
		}
		return gone
	})
	return resp, nil
}

func (f *fake) ListGrants(context.Context, *adminv1.ListGrantsRequest) (*adminv1.ListGrantsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &adminv1.ListGrantsResponse{Grants: slices.Clone(f.grants)}, nil
}

// WaitRevision is done by two of three nodes for revision 1000, by all for any other, and fails for 9.
func (f *fake) WaitRevision(_ context.Context, r *adminv1.WaitRevisionRequest) (*adminv1.WaitRevisionResponse, error) {
	if r.GetRevision() == 9 {
		return nil, refusal(connect.CodeUnavailable, "PostgreSQL is away", "start it")
	}
	resp := &adminv1.WaitRevisionResponse{Complete: true, Generation: 4, ElapsedMs: 37.6}
	for _, n := range []string{"n1", "n2", "n3"} {
		ack := &adminv1.NodeAck{Cell: "local", Node: n, Status: "applied", Generation: 4}
		if r.GetRevision() == 1000 && n == "n3" {
			ack.Generation, resp.Complete = 3, false
		}
		resp.Acks = append(resp.Acks, ack)
	}
	return resp, nil
}

func (f *fake) Explain(_ context.Context, r *adminv1.ExplainRequest) (*adminv1.ExplainResponse, error) {
	if strings.Contains(r.GetArguments(), `"amount":5}`) {
		return &adminv1.ExplainResponse{Allowed: true, Visible: true, Reason: "allowed", Sentence: "a grant allows it", Epoch: 1, Generation: 4}, nil
	}
	return &adminv1.ExplainResponse{
		Reason: "condition", Sentence: "the condition is not met by " + r.GetArguments(), Epoch: 1, Generation: 4, Visible: true,
		Grants: []*adminv1.ExplainedGrant{{Grant: f.grants[0], Path: "user:alice > role:analyst", Outcome: "condition_false"}},
		Fixes:  []string{"mcpvault grant user:alice server:payments/refund"},
	}, nil
}

// WhoCan answers in two pages.
func (f *fake) WhoCan(_ context.Context, r *adminv1.WhoCanRequest) (*adminv1.WhoCanResponse, error) {
	if r.GetPageToken() == "" {
		return &adminv1.WhoCanResponse{NextPageToken: "next", Holders: []*adminv1.Holder{{
			User: "alice", Kind: "person", Access: "always", Paths: []string{"user:alice > role:analyst"},
		}}}, nil
	}
	return &adminv1.WhoCanResponse{Holders: []*adminv1.Holder{{
		User: "=cmd", Kind: "workload", Access: "conditional", Paths: []string{"user:=cmd", "everyone"}, Conditions: []string{`context.args.to == "a, b"`},
	}}}, nil
}

func (f *fake) WhatCan(_ context.Context, r *adminv1.WhatCanRequest) (*adminv1.WhatCanResponse, error) {
	return &adminv1.WhatCanResponse{Disabled: r.GetPrincipal() == "gone", Usable: []*adminv1.Usable{
		{Server: "docs", Kind: "prompt", Name: "review", Access: "always", Paths: []string{"everyone"}},
	}}, nil
}

func (f *fake) Replay(_ context.Context, r *adminv1.ReplayRequest) (*adminv1.ReplayResponse, error) {
	resp := &adminv1.ReplayResponse{
		Same: true, Epoch: 1, Generation: 4, Principal: "alice", Server: "payments", Item: "refund", Allowed: true, Reason: "allowed",
		Grants: []string{"g1"}, Evaluated: r.GetArguments() != "",
	}
	if r.GetArguments() == `{"amount":500}` {
		resp.Same, resp.Allowed, resp.Reason = false, false, "condition"
		resp.Differences = []*adminv1.ReplayDifference{{Field: "effect", Recorded: "allow", Replayed: "deny"}}
	}
	return resp, nil
}

func refunds(text string) *adminv1.Policy {
	return &adminv1.Policy{Name: "refunds", Text: text, Version: 2, UpdatedBy: "root", UpdatedMs: 1000, Rules: []string{"policy:refunds/small"}}
}

const smallRefunds = "permit (principal, action == Action::\"call\", resource == Tool::\"payments/refund\");\n"

// PutPolicy refuses everything that names somebody called nobody.
func (f *fake) PutPolicy(_ context.Context, r *adminv1.PutPolicyRequest) (*adminv1.PutPolicyResponse, error) {
	if strings.Contains(r.GetText(), "nobody") {
		return nil, refusal(connect.CodeInvalidArgument, `1:21: User "nobody" does not exist`, "create it first, or name one that there is")
	}
	return &adminv1.PutPolicyResponse{Policy: refunds(r.GetText()), Revision: 7}, nil
}

func (f *fake) GetPolicy(_ context.Context, r *adminv1.GetPolicyRequest) (*adminv1.GetPolicyResponse, error) {
	if r.GetName() != "refunds" {
		return nil, refusal(connect.CodeNotFound, "policy "+r.GetName()+" does not exist", "did you mean refunds?")
	}
	return &adminv1.GetPolicyResponse{Policy: refunds(smallRefunds)}, nil
}

func (f *fake) ListPolicies(context.Context, *adminv1.ListPoliciesRequest) (*adminv1.ListPoliciesResponse, error) {
	return &adminv1.ListPoliciesResponse{Policies: []*adminv1.Policy{refunds(smallRefunds)}}, nil
}

func (f *fake) DeletePolicy(context.Context, *adminv1.DeletePolicyRequest) (*adminv1.DeletePolicyResponse, error) {
	return &adminv1.DeletePolicyResponse{Revision: 8}, nil
}

func (f *fake) ValidatePolicy(_ context.Context, r *adminv1.ValidatePolicyRequest) (*adminv1.ValidatePolicyResponse, error) {
	res := &adminv1.ValidatePolicyResponse{Rules: []string{"policy:" + r.GetName() + "/policy1"}}
	if strings.Contains(r.GetText(), "nobody") {
		res.Issues = []*adminv1.PolicyIssue{{Line: 1, Column: 21, What: `User "nobody" does not exist`, Fix: "create it first"}, {What: "the whole is wrong", Fix: "write another"}}
	}
	return res, nil
}

func (f *fake) ExportPolicy(context.Context, *adminv1.ExportPolicyRequest) (*adminv1.ExportPolicyResponse, error) {
	return &adminv1.ExportPolicyResponse{Cedar: smallRefunds, Entities: `[{"uid":{"type":"User","id":"alice"}}]`, Revision: 7}, nil
}

func (f *fake) GetSchema(context.Context, *adminv1.GetSchemaRequest) (*adminv1.GetSchemaResponse, error) {
	return &adminv1.GetSchemaResponse{Version: 1, Text: "entity User;\n"}, nil
}

func (f *fake) CreateToken(_ context.Context, r *adminv1.CreateTokenRequest) (*adminv1.CreateTokenResponse, error) {
	return &adminv1.CreateTokenResponse{Token: &adminv1.Token{Id: "01K", Principal: r.GetPrincipal(), ExpiresMs: r.GetTtl().AsDuration().Milliseconds()}, Secret: "s3cret"}, nil
}

func (f *fake) ListCells(context.Context, *adminv1.ListCellsRequest) (*adminv1.ListCellsResponse, error) {
	node := func(name, raft string, up bool) *adminv1.CellNode {
		return &adminv1.CellNode{Connected: up, Status: &cellv1.NodeStatus{
			Cell: "local", Node: name, RaftState: raft, AuditSize: 10, AuditDelivered: 9,
			Applied: []*cellv1.AppliedHead{{TenantId: "t1", Epoch: 1, Generation: 4}},
		}}
	}
	return &adminv1.ListCellsResponse{Cells: []*adminv1.Cell{{
		Name: "local", Tenants: []string{"acme"}, Nodes: []*adminv1.CellNode{node("n1", "leader", true), node("n2", "follower", true), node("n3", "", false)},
	}}}, nil
}

// ListSessions has one session of alice's, and a cell that is away.
func (f *fake) ListSessions(_ context.Context, r *adminv1.ListSessionsRequest) (*adminv1.ListSessionsResponse, error) {
	s := &adminv1.Session{
		Id: "5c0e9f3a51c1d9b0a2f7748d6f1b2c3d", Cell: "local", Node: "n2", Principal: "alice", Server: "demo", Client: "claude-code 2.1.0",
		Revision: "2025-11-25", CreatedMs: 1_700_000_000_000, UsedMs: 1_700_000_060_000, Upstream: true,
	}
	if r.GetId() != "" && r.GetId() != s.GetId() || r.GetPrincipal() != "" && r.GetPrincipal() != "alice" {
		return &adminv1.ListSessionsResponse{}, nil
	}
	return &adminv1.ListSessionsResponse{Sessions: []*adminv1.Session{s}, More: r.GetLimit() == 1, Silent: []string{"eu"}}, nil
}

func (f *fake) SearchRecords(_ context.Context, r *adminv1.SearchRecordsRequest) (*adminv1.SearchRecordsResponse, error) {
	leaf, err := proto.Marshal(&auditv1.Record{
		Id: "01J", Kind: auditv1.RecordKind_RECORD_KIND_CALL, Method: "tools/call", Server: "demo", Target: "echo",
		Decision: auditv1.Decision_DECISION_ALLOW, Reason: "allowed", Cell: "local", Node: "n1", Principal: &auditv1.Person{Name: "alice"}, Epoch: 1, Generation: 4,
	})
	if err != nil {
		return nil, err
	}
	if r.GetDecision() == "deny" || r.GetAfter() > 0 {
		return &adminv1.SearchRecordsResponse{Last: r.GetAfter()}, nil
	}
	return &adminv1.SearchRecordsResponse{Records: []*adminv1.AuditRecord{{LogId: "mcpvault/audit/local/n1/0", Leaf: leaf}}, Last: 1}, nil
}

func (f *fake) Whoami(context.Context, *adminv1.WhoamiRequest) (*adminv1.WhoamiResponse, error) {
	return &adminv1.WhoamiResponse{Principal: "root", Tenant: "acme", Roles: []string{"owner"}}, nil
}

func (f *fake) CheckHealth(context.Context, *adminv1.CheckHealthRequest) (*adminv1.CheckHealthResponse, error) {
	return &adminv1.CheckHealthResponse{Version: "v1", Checks: []*adminv1.HealthCheck{{Name: "database", Ok: false, Detail: "away", Fix: "start it"}}}, nil
}

// fakeCell answers MCP requests as a cell would.
func fakeCell(t testing.TB) string {
	t.Helper()
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer alice") {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		raw, _ := io.ReadAll(r.Body)
		var m struct {
			ID     int    `json:"id"`
			Method string `json:"method"`
			Params struct {
				Name      string          `json:"name"`
				Arguments json.RawMessage `json:"arguments"`
			} `json:"params"`
		}
		_ = json.Unmarshal(raw, &m)
		for k, v := range map[string]string{
			"MCPVault-Decision-Id": "01J", "MCPVault-Snapshot": "1.4", "MCPVault-Cell": "local/n1", "Server-Timing": "decision;dur=0.2",
		} {
			w.Header().Set(k, v)
		}
		_, _ = io.WriteString(w, fakeAnswer(w, m.ID, m.Method, r.URL.Path, m.Params.Name, string(m.Params.Arguments)))
	}))
	t.Cleanup(hs.Close)
	return hs.URL + "/mcp"
}

func fakeAnswer(w http.ResponseWriter, id int, method, path, tool, args string) string {
	result := func(s string) string { return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"result":%s}`, id, s) }
	text := func(s string) string { q, _ := json.Marshal(s); return `[{"type":"text","text":` + string(q) + `}]` }
	if method == "tools/list" {
		if path == "/mcp" {
			return result(`{"tools":[{"name":"demo__echo","description":"echoes"}]}`)
		}
		return result(`{"tools":[{"name":"echo","inputSchema":{"properties":{"message":{"type":"string"}}}},{"name":"limited","inputSchema":{"properties":{"amount":{"type":"number"}}}}]}`)
	}
	switch tool {
	case "echo":
		return result(`{"content":` + text(args) + `}`)
	case "slow":
		w.Header().Set("Content-Type", "text/event-stream")
		return "data: " + `{"jsonrpc":"2.0","method":"notifications/progress","params":{"progress":1,"total":2,"message":"half"}}` + "\n\ndata: " + result(`{"content":`+text("done")+`}`) + "\n\n"
	case "broken":
		return result(`{"isError":true,"content":` + text("it broke") + `}`)
	case "limited":
		return result(`{"isError":true,"content":` + text("not with these arguments: "+args) + `,"structuredContent":{"decisionId":"01J","reason":"condition","retryable":false,"hint":"ask"}}`)
	case "upstream":
		return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":-32000,"message":"upstream unavailable"}}`, id)
	}
	return fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"error":{"code":-32602,"message":%q,"data":{"decisionId":"01J","hint":"mcpvault access explain","args":%s}}}`, id, "unknown tool "+strconv.Quote(tool), args)
}
