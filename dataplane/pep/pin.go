package pep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/kit/run"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

// The bounds of one look at what a server advertises.
const (
	pinTime    = 10 * time.Second
	pinWorkers = 8
	pinPages   = 100
	pinBytes   = 16 << 20
)

// toolChanged is why a tool is refused that its server describes otherwise than it was approved.
const toolChanged = "tool_changed"

// pins are the tools that were found to be described otherwise than they were approved. A server whose answer could not be
// had or read keeps the verdict it has.
type pins struct {
	found atomic.Pointer[map[pinned][]string] // sorted names; the map and what is in it never change
}

// pinned is one approved version: what is approved anew is looked at anew.
type pinned struct {
	tenant  snapshot.TenantID
	server  string
	version snapshot.Digest
}

func (p *pins) of(t *pdp.Tenant, s *pdp.Server) []string {
	if m := p.found.Load(); m != nil && len(*m) > 0 {
		return (*m)[pinned{t.ID, s.Name, s.VersionDigest}]
	}
	return nil
}

// changedTool reports whether a tool is not what was approved any more.
func (x *exchange) changedTool(tool string) bool {
	_, changed := slices.BinarySearch(x.p.pins.of(x.tenant, x.server), tool)
	return changed && !x.tenant.Guards.ServeChanged
}

// runPins looks at all servers again and again. Nodes of a cell, which start together, do not look together.
func (p *PEP) runPins(ctx context.Context) {
	pause(ctx, rand.N(p.cfg.PinEvery)) //nolint:gosec // it spreads load
	if ctx.Err() != nil {
		return
	}
	p.lookAtAll(ctx)
	_ = run.Every(ctx, p.cfg.PinEvery, p.lookAtAll)
}

// lookAtAll compares what the servers of all tenants advertise with what was approved.
func (p *PEP) lookAtAll(ctx context.Context) {
	before := map[pinned][]string{}
	if m := p.pins.found.Load(); m != nil {
		before = *m
	}
	var mu sync.Mutex
	now := map[pinned][]string{}
	var wg sync.WaitGroup
	places := make(chan struct{}, pinWorkers)
	for _, t := range p.policy.Current().Tenants() {
		if t.Guards.ServeChanged {
			continue
		}
		for _, s := range t.Servers {
			if !strings.Contains(s.URL, "://") { // a process of this node's own, whose program's digest is pinned
				continue
			}
			places <- struct{}{}
			wg.Go(func() {
				defer func() { <-places }()
				k := pinned{t.ID, s.Name, s.VersionDigest}
				changed, err := p.look(ctx, t, s)
				if err != nil {
					p.log.Debug("what a server advertises could not be compared with what was approved", "server", s.Name, "error", err)
					changed = before[k]
				} else if !slices.Equal(changed, before[k]) {
					p.tellChanged(t, s, changed)
				}
				if len(changed) > 0 {
					mu.Lock()
					defer mu.Unlock()
					now[k] = changed
				}
			})
		}
	}
	wg.Wait()
	if ctx.Err() != nil || maps.EqualFunc(now, before, slices.Equal) {
		return
	}
	p.pins.found.Store(&now)
}

// look asks one server for its tools and names those, sorted, that are not what was approved. What it does not advertise
// any more, or advertises besides, is not called by anybody.
func (p *PEP) look(ctx context.Context, t *pdp.Tenant, s *pdp.Server) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, pinTime)
	defer cancel()
	advertised, err := p.advertised(ctx, t, s)
	if err != nil {
		return nil, err
	}
	changed := []string{}
	for name, raw := range advertised {
		if tool, approved := s.Tool(name); approved && !sameJSON(tool.Raw, raw) {
			changed = append(changed, name)
		}
	}
	slices.Sort(changed)
	return changed, nil
}

// advertised are the tool objects of a server by name. They are asked for as at registration: by a client that offers
// nothing, since what servers list may depend on that.
func (p *PEP) advertised(ctx context.Context, t *pdp.Tenant, s *pdp.Server) (map[string]json.RawMessage, error) {
	set := http.Header{mcp.HeaderMethod: {mcp.MethodToolsList}, mcp.HeaderVersion: {mcp.Rev20260728}, mcp.HeaderName: nil}
	if _, err := p.credentials(ctx, p.policy.Current(), t, s, set); err != nil {
		return nil, err
	}
	x := exchange{p: p, ctx: ctx, tenant: t, server: s, set: set}
	meta := `"_meta":{"` + mcp.MetaVersion + `":"` + mcp.Rev20260728 + `","` + mcp.MetaCapabilities + `":{},"` + mcp.MetaClientInfo + `":` + string(x.clientInfo()) + `}`
	if len(s.ProtocolVersions) > 0 && !s.Speaks(mcp.Rev20260728) {
		meta = ""
		up, err := x.openSession(ctx, s, set, 0, "")
		if err != nil {
			return nil, err
		}
		defer p.hangUp(context.WithoutCancel(ctx), []session.Upstream{up})
		merge(set, sessionHeader(up.ID, up.Revision))
	}
	all, cursor, size := map[string]json.RawMessage{}, "", 0
	for range pinPages {
		members := meta
		if cursor != "" {
			members = string(mcp.AppendString([]byte(`"cursor":`), cursor))
			if meta != "" {
				members += "," + meta
			}
		}
		page, next, err := p.toolsPage(ctx, s, set, members)
		if err != nil {
			return nil, err
		}
		for _, raw := range page {
			var named struct {
				Name string `json:"name"`
			}
			if size += len(raw); size > pinBytes || json.Unmarshal(raw, &named) != nil {
				return nil, errPinned
			}
			if _, twice := all[named.Name]; twice {
				return nil, errPinned
			}
			all[named.Name] = raw
		}
		if cursor = next; cursor == "" {
			return all, nil
		}
	}
	return nil, errPinned
}

var errPinned = errors.New("the list of tools cannot be read")

// toolsPage asks for one page. The answer is taken as it is, hidden text included: it is compared, never shown.
func (p *PEP) toolsPage(ctx context.Context, s *pdp.Server, set http.Header, members string) (page []json.RawMessage, next string, err error) {
	asked := exchange{p: p, ctx: ctx, msg: mcp.Message{ID: []byte("3")}}
	resp, err := p.up.Do(ctx, &upstream.Request{
		URL: s.URL, Method: http.MethodPost, Set: set, Body: []byte(`{"jsonrpc":"2.0","id":3,"method":"` + mcp.MethodToolsList + `","params":{` + members + `}}`),
	})
	if err != nil {
		return nil, "", err
	}
	defer resp.Close()
	_, m, err := asked.collect(resp)
	if err != nil {
		return nil, "", err
	}
	var result struct {
		Tools      []json.RawMessage `json:"tools"`
		NextCursor string            `json:"nextCursor"`
	}
	if !m.Result.Present() || json.Unmarshal(m.Raw(m.Result), &result) != nil {
		return nil, "", errPinned
	}
	return result.Tools, result.NextCursor, nil
}

// sameJSON compares what two raw objects say: some servers write their members in another order each time.
func sameJSON(a, b []byte) bool {
	if bytes.Equal(bytes.TrimSpace(a), bytes.TrimSpace(b)) {
		return true
	}
	read := func(raw []byte) (v any, err error) {
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber()
		return v, dec.Decode(&v)
	}
	va, errA := read(a)
	vb, errB := read(b)
	return errA == nil && errB == nil && reflect.DeepEqual(va, vb)
}

// tellChanged records that a server changed what was approved, or changed it back.
func (p *PEP) tellChanged(t *pdp.Tenant, s *pdp.Server, changed []string) {
	rec := &auditv1.Record{
		Id: p.audit.NewID(), Kind: auditv1.RecordKind_RECORD_KIND_SYSTEM, TimeMs: p.cfg.Now().UnixMilli(), Cell: p.cfg.Cell, Node: p.cfg.Node,
		Region: p.cfg.Region, TenantId: string(t.ID), Tenant: t.Name, Server: s.Name, VersionDigest: s.VersionDigest[:],
		Decision: auditv1.Decision_DECISION_DENY, Reason: toolChanged, Code: codeDenied, Outcome: "refused", Detail: bounded(strings.Join(changed, " "), 512),
	}
	if len(changed) == 0 {
		rec.Decision, rec.Reason, rec.Code, rec.Outcome = auditv1.Decision_DECISION_ALLOW, "tools_as_approved", codeAllowed, "ok"
		p.log.Warn("a server describes its tools again as they were approved", "server", s.Name, "tenant", t.Name)
	} else {
		p.log.Error("a server describes tools otherwise than they were approved: they are refused until the change is approved or taken back",
			"server", s.Name, "tenant", t.Name, "tools", changed)
	}
	rec.RequestId = rec.GetId()
	p.keep(rec)
}
