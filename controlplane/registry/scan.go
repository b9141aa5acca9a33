package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/client/transport"
	"github.com/mark3labs/mcp-go/mcp"

	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/kit/egress"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// The bounds of one scan.
const (
	MaxTools     = 1000
	MaxEntries   = 1000 // of prompts, of resources, and of resource templates
	MaxScanBytes = 8 << 20
	ScanTimeout  = 10 * time.Second
)

// The protocol revisions that are asked for, newest first.
const (
	modernRevision = "2026-07-28"
	newestLegacy   = "2025-11-25"
	oldestLegacy   = "2025-06-18"
)

// Scanner reads the surface of a live server over Streamable HTTP. It keeps every tool as the server sent it: mcp-go's
// typed results would lose members of schemas and round large numbers, so only its transport is used, whose results stay
// raw.
type Scanner struct {
	transport *http.Transport
	secure    func(spiffeID string) (*tls.Config, error)
	log       *slog.Logger
	version   string
}

// NewScanner uses rt for every connection: it decides which addresses may be reached. secure is how a connection is made to
// a server whose address names its SPIFFE ID. version is told to the server.
func NewScanner(rt *http.Transport, secure func(spiffeID string) (*tls.Config, error), version string, log *slog.Logger) *Scanner {
	return &Scanner{transport: rt, secure: secure, version: version, log: log}
}

// towards is the address without its identity, and the transport that demands it.
func (s *Scanner) towards(url string) (address string, rt *http.Transport, err error) {
	address, id := svid.SplitAddress(url)
	if id == "" {
		return address, s.transport, nil
	}
	rt = s.transport.Clone()
	if rt.TLSClientConfig, err = s.secure(id); err != nil {
		return "", nil, problem.Newf(problem.Invalid, "add its trust domain's bundle to upstream_bundles of the control plane and of the cells",
			"the server's identity cannot be verified: %v", err)
	}
	return address, rt, nil
}

// Scan asks the server what it speaks and what it offers. It takes at most ScanTimeout, and 5 s more for a server that
// does not answer when its sessions are ended, MaxTools, MaxEntries
// and MaxScanBytes. Errors are problems: unavailable when the server does not answer, invalid when its answer cannot be used.
func (s *Scanner) Scan(ctx context.Context, url string) (*Surface, error) {
	ctx, cancel := context.WithTimeout(ctx, ScanTimeout)
	defer cancel()
	address, rt, err := s.towards(url)
	if err != nil {
		return nil, err
	}
	if rt != s.transport {
		defer rt.CloseIdleConnections()
	}
	sc := &scan{
		url: address, log: s.log, version: s.version, surface: &Surface{URL: url}, asked: 1,
		client: &http.Client{
			Transport:     &bounded{next: rt},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	defer sc.close()
	if err := sc.run(ctx); err != nil {
		return nil, explain(ctx, url, err)
	}
	if _, err := sc.surface.Digest(); err != nil {
		return nil, err
	}
	return sc.surface, nil
}

type scan struct {
	url, version string
	client       *http.Client
	log          *slog.Logger
	surface      *Surface
	asked        int // number of the newest request for a list
	sessions     []dialogue
}

// dialogue is one connection of the protocol library.
type dialogue interface {
	SendRequest(ctx context.Context, req transport.JSONRPCRequest) (*transport.JSONRPCResponse, error)
	SendNotification(ctx context.Context, n mcp.JSONRPCNotification) error
	SetProtocolVersion(version string)
	Close() error
}

// close ends the sessions at once: a server that does not answer costs the patience of one of them.
func (sc *scan) close() {
	var wg sync.WaitGroup
	for _, c := range sc.sessions {
		wg.Go(func() { _ = c.Close() })
	}
	wg.Wait()
}

// run finds every revision that the server speaks and reads its lists in the newest of them.
func (sc *scan) run(ctx context.Context) error {
	if strings.HasPrefix(sc.url, legacySSE) {
		return sc.runSSE(ctx)
	}
	modern, modernErr := sc.discover(ctx)
	best := modern
	if modern != nil {
		sc.surface.ProtocolVersions = append(sc.surface.ProtocolVersions, modernRevision)
	}
	var legacyErr error
	for _, rev := range []string{newestLegacy, oldestLegacy} {
		session, err := sc.initialize(ctx, rev, best == nil)
		if err != nil {
			legacyErr = errors.Join(legacyErr, err)
			continue
		}
		if session == nil {
			continue
		}
		sc.surface.ProtocolVersions = append(sc.surface.ProtocolVersions, rev)
		if best == nil {
			best = session
		}
	}
	if best == nil {
		if err := errors.Join(legacyErr, modernErr); err != nil {
			return err
		}
		return problem.New(problem.Invalid, "the server speaks none of the supported protocol revisions",
			"it must speak one of "+strings.Join([]string{modernRevision, newestLegacy, oldestLegacy}, ", "))
	}
	return sc.read(ctx, best)
}

// runSSE asks a server of the transport of 2024-11-05, which has sessions only. The node tells callers of the oldest revision
// that it speaks when the server answers with one before it.
func (sc *scan) runSSE(ctx context.Context) error {
	c, err := transport.NewSSE(strings.TrimPrefix(sc.url, legacySSE), transport.WithHTTPClient(sc.client), transport.WithSSELogger(sc.log))
	if err != nil {
		return problem.New(problem.Invalid, "the address is not one that can be used", "give a URL like sse+https://mcp.example.com/sse").Because(err)
	}
	sc.sessions = append(sc.sessions, c)
	if err := c.Start(ctx); err != nil {
		return err
	}
	raw, err := sc.call(ctx, c, 1, "initialize", map[string]any{
		"protocolVersion": newestLegacy, "capabilities": struct{}{}, "clientInfo": sc.clientInfo(),
	}, false)
	if err != nil {
		return err
	}
	revision, err := sc.greeted(ctx, c, raw, true)
	if err != nil {
		return err
	}
	switch revision {
	case newestLegacy, oldestLegacy:
		sc.surface.ProtocolVersions = []string{revision}
	case "2025-03-26", "2024-11-05":
		sc.surface.ProtocolVersions = []string{oldestLegacy, revision}
	default:
		return badSurface("it answers in a revision that does not exist")
	}
	return sc.read(ctx, c)
}

// read checks what the server says of itself and reads its lists.
func (sc *scan) read(ctx context.Context, best dialogue) error {
	for _, raw := range [][]byte{sc.surface.ServerInfo, sc.surface.Capabilities} {
		if len(raw) == 0 {
			continue
		}
		if err := policy.StrictJSON(raw); err != nil || raw[0] != '{' {
			return badSurface("its description of itself is not one clear JSON object")
		}
	}
	return sc.lists(ctx, best)
}

// discover asks in the stateless form; nil when the server does not speak it.
func (sc *scan) discover(ctx context.Context) (dialogue, error) {
	c, err := sc.connect(modernRevision)
	if err != nil {
		return nil, err
	}
	raw, err := sc.call(ctx, c, 1, "server/discover", nil, true)
	if err != nil {
		return nil, err
	}
	var res struct {
		SupportedVersions []string                   `json:"supportedVersions"`
		Capabilities      json.RawMessage            `json:"capabilities"`
		ServerInfo        json.RawMessage            `json:"serverInfo"`
		Instructions      string                     `json:"instructions"`
		Meta              map[string]json.RawMessage `json:"_meta"`
	}
	if err := json.Unmarshal(raw, &res); err != nil {
		return nil, badSurface("its server/discover result does not parse")
	}
	if !slices.Contains(res.SupportedVersions, modernRevision) {
		return nil, nil
	}
	info := res.Meta[mcp.MetaKeyServerInfo]
	if info == nil {
		info = res.ServerInfo
	}
	sc.describe(info, res.Capabilities, res.Instructions)
	return c, nil
}

// initialize opens a session in one revision; nil when the server answers with another.
func (sc *scan) initialize(ctx context.Context, revision string, describe bool) (dialogue, error) {
	c, err := sc.connect("")
	if err != nil {
		return nil, err
	}
	raw, err := sc.call(ctx, c, 1, "initialize", map[string]any{
		"protocolVersion": revision, "capabilities": struct{}{}, "clientInfo": sc.clientInfo(),
	}, false)
	if err != nil {
		return nil, err
	}
	got, err := sc.greeted(ctx, c, raw, describe)
	if err != nil || got != revision {
		return nil, err
	}
	return c, nil
}

// greeted reads the result of an initialize and confirms it; it returns the revision.
func (sc *scan) greeted(ctx context.Context, c dialogue, raw json.RawMessage, describe bool) (string, error) {
	var res struct {
		ProtocolVersion string          `json:"protocolVersion"`
		Capabilities    json.RawMessage `json:"capabilities"`
		ServerInfo      json.RawMessage `json:"serverInfo"`
		Instructions    string          `json:"instructions"`
	}
	if err := json.Unmarshal(raw, &res); err != nil {
		return "", badSurface("its initialize result does not parse")
	}
	c.SetProtocolVersion(res.ProtocolVersion)
	err := c.SendNotification(ctx, mcp.JSONRPCNotification{
		JSONRPC: mcp.JSONRPC_VERSION, Notification: mcp.Notification{Method: "notifications/initialized"},
	})
	if err != nil {
		return "", fmt.Errorf("confirm the session: %w", err)
	}
	if describe {
		sc.describe(res.ServerInfo, res.Capabilities, res.Instructions)
	}
	return res.ProtocolVersion, nil
}

func (sc *scan) describe(info, capabilities json.RawMessage, instructions string) {
	sc.surface.ServerInfo, sc.surface.Capabilities, sc.surface.Instructions = info, capabilities, instructions
}

// lists reads the tools, and whatever else the server says it has.
func (sc *scan) lists(ctx context.Context, c dialogue) error {
	var caps map[string]json.RawMessage
	told := json.Unmarshal(sc.surface.Capabilities, &caps) == nil
	if !told || caps["tools"] != nil {
		if err := sc.list(ctx, c, "tools/list", "tools", "tool", MaxTools, sc.surface.addTool); err != nil {
			return err
		}
	}
	for _, k := range kinds() {
		if caps[k.capability] == nil {
			continue
		}
		err := sc.list(ctx, c, k.method, k.member, k.noun, MaxEntries, func(raw json.RawMessage) error { return k.add(sc.surface, raw) })
		var r *refusal
		if errors.As(err, &r) && r.code == mcp.METHOD_NOT_FOUND && k.noun == "resource template" {
			continue // the capability does not promise templates
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// list reads every page of a list.
func (sc *scan) list(ctx context.Context, c dialogue, method, member, noun string, most int, add func(json.RawMessage) error) error {
	modern := slices.Contains(sc.surface.ProtocolVersions, modernRevision)
	cursor, seen, n := "", map[string]bool{}, 0
	for {
		params := map[string]any{}
		if cursor != "" {
			params["cursor"] = cursor
		}
		sc.asked++
		raw, err := sc.call(ctx, c, sc.asked, method, params, modern)
		if err != nil {
			return err
		}
		var res map[string]json.RawMessage
		var page []json.RawMessage
		var next string
		if json.Unmarshal(raw, &res) != nil || json.Unmarshal(res[member], &page) != nil ||
			res["nextCursor"] != nil && json.Unmarshal(res["nextCursor"], &next) != nil {
			return badSurface("its " + noun + " list does not parse")
		}
		if n += len(page); n > most {
			return badSurface(fmt.Sprintf("it lists more than %d %ss", most, noun))
		}
		for _, element := range page {
			if err := add(element); err != nil {
				return err
			}
		}
		if next == "" {
			return nil
		}
		if seen[next] || len(seen) >= most {
			return badSurface("its " + noun + " list never ends")
		}
		seen[next] = true
		cursor = next
	}
}

func (sc *scan) connect(revision string) (dialogue, error) {
	c, err := transport.NewStreamableHTTP(sc.url, transport.WithHTTPBasicClient(sc.client), transport.WithHTTPLogger(sc.log))
	if err != nil {
		return nil, problem.New(problem.Invalid, "the address is not one that can be used", "give a URL like https://mcp.example.com/mcp").Because(err)
	}
	if revision != "" {
		c.SetProtocolVersion(revision)
	}
	sc.sessions = append(sc.sessions, c)
	return c, nil
}

// call sends one request and returns the raw result. In the stateless form the request carries who asks in _meta.
func (sc *scan) call(ctx context.Context, c dialogue, id int, method string, params map[string]any, modern bool) (json.RawMessage, error) {
	req := transport.JSONRPCRequest{JSONRPC: mcp.JSONRPC_VERSION, ID: mcp.NewRequestId(int64(id)), Method: method, Params: params}
	if modern {
		if params == nil {
			params = map[string]any{}
		}
		params["_meta"] = map[string]any{
			mcp.MetaKeyProtocolVersion: modernRevision, mcp.MetaKeyClientCapabilities: struct{}{}, mcp.MetaKeyClientInfo: sc.clientInfo(),
		}
		req.Params = params
		req.Header = http.Header{mcp.HeaderMethod: {method}}
	}
	res, err := c.SendRequest(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	if res.Error != nil {
		return nil, &refusal{method: method, code: res.Error.Code, message: res.Error.Message}
	}
	if len(res.Result) == 0 {
		return nil, badSurface("its answer to " + method + " has no result")
	}
	return res.Result, nil
}

func (sc *scan) clientInfo() map[string]string {
	return map[string]string{"name": "mcpvault-scanner", "version": sc.version}
}

// refusal is a JSON-RPC error that the server answered.
type refusal struct {
	method, message string
	code            int
}

func (r *refusal) Error() string {
	return fmt.Sprintf("%s: the server answered error %d: %.200s", r.method, r.code, r.message)
}

var errTooLarge = errors.New("the server's answers are larger than what a scan accepts")

// explain makes a sentence for a person of what went wrong.
func explain(ctx context.Context, url string, err error) error {
	if errors.Is(err, errTooLarge) {
		return badSurface(fmt.Sprintf("it is larger than %d MiB", MaxScanBytes>>20)).Because(err)
	}
	if errors.Is(err, egress.ErrBlocked) {
		return problem.Newf(problem.Denied, "use a public address, or add it as CIDR:port to egress_allow of the control plane and of the cells",
			"%s leads to an address inside, which is closed", url).Because(err)
	}
	if ctx.Err() != nil {
		return problem.Newf(problem.Unavailable, "check that the server runs and is reachable from the control plane",
			"%s did not answer within %s", url, ScanTimeout).Because(err)
	}
	if p, ok := problem.As(err); ok {
		return p
	}
	if errors.Is(err, transport.ErrAuthorizationRequired) {
		return problem.Newf(problem.Denied, "credentials for upstream servers are not supported yet; register one that needs none", "%s asks for credentials", url).Because(err)
	}
	var r *refusal
	if errors.As(err, &r) {
		return problem.Newf(problem.Invalid, "check the address, its path included", "%s is no usable MCP server: %s", url, r.Error()).Because(err)
	}
	return problem.Newf(problem.Unavailable, "check the address, and that the server runs and speaks Streamable HTTP", "%s could not be scanned", url).Because(err)
}

// bounded lets a scan read only so much, all its answers together.
type bounded struct {
	next http.RoundTripper
	read atomic.Int64
}

func (b *bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := b.next.RoundTrip(req)
	if err == nil {
		res.Body = &boundedBody{ReadCloser: res.Body, read: &b.read}
	}
	return res, err
}

type boundedBody struct {
	io.ReadCloser
	read *atomic.Int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.read.Add(int64(n)) > MaxScanBytes {
		return 0, errTooLarge
	}
	return n, err
}
