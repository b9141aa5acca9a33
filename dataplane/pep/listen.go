package pep

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/bridge"
	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/dataplane/session"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/veneer"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/authz"
	"google.golang.org/protobuf/proto"
)

// listen keeps a stream open on which the caller is told of changes: of lists when a new policy shows them other ones, for
// which no upstream is needed, and of resources when their servers say so.
func (x *exchange) listen() *answer {
	x.untilExpiry()
	x.watched = x.watch()
	if x.r.Method == http.MethodGet && !x.owned {
		x.wanted = everyList()
		if x.mayOther() {
			return x.listenRelayed()
		}
	}
	if a := x.comesBack(); a != nil || x.done {
		return a
	}
	return x.listenOwn()
}

// everyList is what a legacy stream tells of unasked.
func everyList() bridge.Wanted { return bridge.Wanted{Tools: true, Prompts: true, Resources: true} }

// lists are those that a caller is told of.
var lists = [3]string{veneer.Tools, veneer.Prompts, veneer.Resources}

// watch is what the caller sees of each of the lists, as a hash.
func (x *exchange) watch() [3]uint64 {
	var h maphash.Hash
	h.SetSeed(x.p.seed)
	sum := func(all ...[]veneer.Entry) uint64 {
		h.Reset()
		for _, list := range all {
			for i := range list {
				_, _ = h.WriteString(list[i].Name)
				_ = h.WriteByte(0)
				_, _ = h.Write(list[i].Raw)
				_ = h.WriteByte(0)
			}
			_ = h.WriteByte(1)
		}
		return h.Sum64()
	}
	return [3]uint64{
		sum(x.visibleTools()), sum(x.listed(veneer.Prompts)), sum(x.listed(veneer.Resources), x.listed(veneer.ResourceTemplates)),
	}
}

// changes are the notices of the wanted lists that show the caller something else than they did.
func (x *exchange) changes() [][]byte {
	now := x.watch()
	var out [][]byte
	for i, of := range lists {
		if now[i] != x.watched[i] && x.wanted.Lists(of) {
			out = append(out, mcp.AppendEvent(nil, bridge.AppendListChanged(nil, x.subscription(), of)))
		}
	}
	x.watched = now
	return out
}

// subscription is what notices are tagged with on a modern stream, nil on a legacy one.
func (x *exchange) subscription() []byte {
	if x.era == mcp.EraModern {
		return x.msg.ID
	}
	return nil
}

// decideListen judges a legacy client's stream: whoever sees anything of a server is told of its lists; what the server
// itself says there is for those who have the whole of it.
func (x *exchange) decideListen() *answer {
	switch {
	case x.server == nil:
	case !x.seesAny(x.server, &x.view):
		return x.unknownServer(x.blind())
	case x.relaying && !x.mayOther():
		return x.unknownMethod("no_grant")
	}
	x.allowed(snapshotv1.Effect_EFFECT_READ)
	return nil
}

// decideNotices judges what a modern client wants to be told of. Resources that it may not read are left out of what it is
// promised, and recorded.
func (x *exchange) decideNotices() *answer {
	w, whole := bridge.ParseWanted(x.msg.Raw(x.msg.Params))
	switch {
	case !whole:
		return x.reject(http.StatusBadRequest, mcp.CodeInvalidParams, "subscriptions_invalid", "params.notifications must say what is wanted, with at most 256 resources")
	case x.server != nil && !x.state.Fresh(x.tenant, x.server.Bound(snapshotv1.Effect_EFFECT_READ), x.ask.NowMS):
		x.denied("stale")
		return x.fail(mcp.CodeServer, "stale", staleSentence, true)
	}
	if x.server != nil && !x.seesAny(x.server, &x.view) {
		return x.unknownServer(x.blind())
	}
	x.allowed(snapshotv1.Effect_EFFECT_READ)
	x.asked = w
	var may []string
	for _, uri := range w.URIs {
		s := x.resourceServer(uri)
		if s != nil && x.mayRead(s, uri) {
			may = append(may, uri)
		} else if !x.recorded {
			x.recordHidden(uri)
		}
	}
	w.URIs = may
	x.wanted = w
	return nil
}

func (x *exchange) mayRead(s *pdp.Server, uri string) bool {
	v := x.viewOf(s)
	return authz.DecideResource(&v, uri, &x.ask).Allow && !x.killedServer(s)
}

// recordHidden records that the caller wanted to be told of a resource that they may not read.
func (x *exchange) recordHidden(uri string) {
	rec := proto.Clone(x.rec).(*auditv1.Record)
	rec.Id, rec.Target = x.p.audit.NewID(), bounded(uri, 256)
	rec.Decision, rec.Reason, rec.Code = auditv1.Decision_DECISION_DENY, "no_grant", codeDenied
	rec.Outcome = "refused"
	if err := x.p.audit.Append(rec); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", rec.GetId())
	}
}

// source is a stream of an upstream that says which resources have changed.
type source struct {
	server *pdp.Server
	// verbatim: it is the caller's own request, in the caller's era.
	verbatim bool
	agreed   bridge.Wanted
	// early came before the server had said what it agrees to, as a change can in the very moment.
	early []*mcp.Message
	resp  *upstream.Response
	// up is the session that was opened for it, of a legacy upstream.
	up     session.Upstream
	set    http.Header
	cancel context.CancelFunc
}

// heardOf is a notice of a source; m is nil when the source has ended.
type heardOf struct {
	from *source
	m    *mcp.Message
}

// sources are those of one stream.
type sources struct {
	ctx    context.Context
	cancel context.CancelFunc
	all    []*source
	// awaited are those that are tried again.
	awaited []*awaited
	heard   chan heardOf
	wg      sync.WaitGroup
}

// openSources asks the servers of the resources. What a server does not agree to is left out; one that cannot be reached is
// asked again, for as long as the stream lasts.
func (x *exchange) openSources(uris []string) *sources {
	ss := &sources{heard: make(chan heardOf)}
	ss.ctx, ss.cancel = context.WithCancel(x.ctx)
	by := map[*pdp.Server][]string{}
	var order []*pdp.Server
	for _, uri := range uris {
		s := x.resourceServer(uri)
		if s == nil || !x.mayRead(s, uri) {
			continue
		}
		if by[s] == nil {
			order = append(order, s)
		}
		by[s] = append(by[s], uri)
	}
	if x.verbatim() && len(order) == 0 {
		order = append(order, x.server) // its lists may be the upstream's
	}
	for _, s := range order {
		ss.open(x, &awaited{server: s.Name, uris: by[s]}, sourceTime)
	}
	return ss
}

// awaited is a source that could not be opened.
type awaited struct {
	server string
	uris   []string
	tries  int
	due    time.Time
}

// open opens a source, or sees to it that it is tried again.
func (ss *sources) open(x *exchange, w *awaited, within time.Duration) *source {
	s, exists := x.tenant.Server(w.server)
	if !exists {
		return nil
	}
	src, err := x.openSource(ss.ctx, s, w.uris, within)
	if err == nil {
		ss.all = append(ss.all, src)
		ss.wg.Go(func() { ss.read(x.p.framer, src) })
		return src
	}
	again := unreached(err)
	if w.tries == 0 || !again {
		x.p.log.Warn("no updates from upstream", "server", s.Name, "error", err, "again", again, "request_id", x.rec.GetId())
	}
	if again {
		var pace resumption
		w.due = time.Now().Add(pace.wait(w.tries))
		w.tries++
		ss.awaited = append(ss.awaited, w)
	}
	return nil
}

// unreached reports whether a source that could not be opened may be opened later: its server was not there, or not well.
func unreached(err error) bool {
	for _, is := range []error{upstream.ErrUnavailable, upstream.ErrRefused, upstream.ErrBusy, upstream.ErrBroken, errTimeout, context.Canceled, io.ErrUnexpectedEOF} {
		if errors.Is(err, is) {
			return true
		}
	}
	var p *phrase
	return errors.As(err, &p) && p.retryable
}

// retryTime bounds one of the later tries, during which the stream stands still.
const retryTime = time.Second

// due gets a value when a source is to be tried again; nil when none is.
func (ss *sources) due() (due <-chan time.Time, stop func() bool) {
	if len(ss.awaited) == 0 {
		return nil, func() bool { return false }
	}
	next := slices.MinFunc(ss.awaited, func(a, b *awaited) int { return a.due.Compare(b.due) })
	t := time.NewTimer(time.Until(next.due))
	return t.C, t.Stop
}

// retry tries what is due. What was opened is told as changed, for nobody heard whether it did meanwhile. It reports whether the
// stream can go on: not when a server does not agree, after all, to what was promised.
func (ss *sources) retry(x *exchange, out *sseWriter) bool {
	now, all := time.Now(), ss.awaited
	ss.awaited = nil
	for _, w := range all {
		if w.due.After(now) {
			ss.awaited = append(ss.awaited, w)
			continue
		}
		src := ss.open(x, w, retryTime)
		if src == nil {
			continue
		}
		for _, uri := range w.uris {
			switch {
			case !slices.Contains(src.agreed.URIs, uri):
				return x.era == mcp.EraLegacy
			case !x.mayRead(src.server, uri):
			case !out.send(mcp.AppendEvent(nil, bridge.AppendUpdated(nil, x.subscription(), uri))):
				return false
			}
		}
	}
	return true
}

// verbatim reports whether a modern client's request can go on to its server as it is.
func (x *exchange) verbatim() bool {
	return x.era == mcp.EraModern && x.server != nil && !x.owned && x.mayOther() && len(x.wanted.URIs) == len(x.asked.URIs)
}

// sourceTime bounds the wait for an upstream before the stream goes on without it.
const sourceTime = 5 * time.Second

// maxEarly bounds what a server may say before it says what it agrees to.
const maxEarly = 16

// openSource opens a source, which then lasts as long as the stream.
func (x *exchange) openSource(ctx context.Context, s *pdp.Server, uris []string, within time.Duration) (*source, error) {
	src := &source{server: s, set: http.Header{}, verbatim: x.verbatim()}
	leaks, err := x.p.credentials(ctx, x.state, x.tenant, s, src.set)
	if err != nil {
		return nil, err
	}
	x.mustNotLeak(leaks)
	ctx, src.cancel = context.WithCancel(ctx)
	late := time.AfterFunc(within, src.cancel)
	if src.verbatim || x.speaksModern(s) {
		err = x.openModernSource(ctx, src, uris)
	} else {
		err = x.openLegacySource(ctx, src, uris)
	}
	if err == nil && !late.Stop() {
		err = errTimeout
	}
	if err != nil {
		x.p.closeSource(src)
		return nil, err
	}
	return src, nil
}

func (x *exchange) openModernSource(ctx context.Context, src *source, uris []string) error {
	req := &upstream.Request{URL: src.server.URL, Method: http.MethodPost, Set: src.set, Long: true}
	if src.verbatim {
		req.Body, req.Header = x.msg.Body, x.r.Header
	} else {
		req.Body = bridge.AppendListen(nil, mcp.AppendString(nil, x.rec.GetId()), x.clientInfo(), uris)
		merge(src.set, http.Header{mcp.HeaderVersion: {mcp.Rev20260728}, mcp.HeaderMethod: {mcp.MethodListen}})
	}
	var err error
	if src.resp, err = x.p.up.Do(ctx, req); err != nil {
		return err
	}
	if src.resp.Events == nil {
		return noStream(src.resp)
	}
	for {
		ev, err := src.resp.Events.Next()
		if err != nil {
			return err
		}
		if len(ev.Data) == 0 {
			continue
		}
		m, refusal := x.p.framer.FrameAnswer(bytes.Clone(ev.Data))
		switch {
		case refusal == nil && m.Method == mcp.MethodAcknowledged:
			src.agreed, _ = bridge.ParseWanted(m.Raw(m.Params))
			return nil
		case refusal != nil || m.Kind != mcp.KindNotification || len(src.early) == maxEarly:
			return upstream.ErrProtocol
		}
		src.early = append(src.early, &m)
	}
}

// noStream is what it means that a server answered with none.
func noStream(resp *upstream.Response) error {
	if resp.Status >= http.StatusInternalServerError {
		return upstream.ErrUnavailable
	}
	return upstream.ErrProtocol
}

func (x *exchange) openLegacySource(ctx context.Context, src *source, uris []string) error {
	var err error
	if src.up, err = x.openSession(ctx, src.server, src.set, 0, ""); err != nil {
		return err
	}
	merge(src.set, sessionHeader(src.up.ID, src.up.Revision))
	for i, uri := range uris {
		id := mcp.AppendString(nil, x.rec.GetId()+"."+strconv.Itoa(i))
		resp, err := x.p.up.Do(ctx, &upstream.Request{
			URL: src.up.URL, Method: http.MethodPost, Set: src.set, Body: bridge.AppendSubscribe(nil, id, uri),
		})
		if err != nil {
			return err
		}
		asked := exchange{p: x.p, ctx: ctx, msg: mcp.Message{ID: id}}
		_, m, err := asked.collect(resp)
		resp.Close()
		if err != nil {
			return err
		}
		if m.Result.Present() {
			src.agreed.URIs = append(src.agreed.URIs, uri)
		}
	}
	if src.resp, err = x.p.up.Do(ctx, &upstream.Request{URL: src.up.URL, Method: http.MethodGet, Set: src.set, Long: true}); err != nil {
		return err
	}
	if src.resp.Events == nil {
		return noStream(src.resp)
	}
	return nil
}

// closeSource ends what was opened for a source.
func (p *PEP) closeSource(src *source) {
	src.cancel()
	if src.resp != nil {
		src.resp.Close()
	}
	if src.up.URL != "" {
		p.hangUp(context.Background(), []session.Upstream{src.up})
	}
}

// read hands on what one source says, until it ends.
func (ss *sources) read(f *mcp.Framer, src *source) {
	for _, m := range src.early {
		select {
		case ss.heard <- heardOf{src, m}:
		case <-ss.ctx.Done():
			return
		}
	}
	for {
		ev, err := src.resp.Events.Next()
		h := heardOf{from: src}
		if err == nil {
			if len(ev.Data) == 0 {
				continue
			}
			if m, refusal := f.FrameAnswer(bytes.Clone(ev.Data)); refusal == nil {
				h.m = &m
			}
		}
		select {
		case ss.heard <- h:
		case <-ss.ctx.Done():
			return
		}
		if h.m == nil {
			return
		}
	}
}

// close ends all sources and waits for them.
func (ss *sources) close(p *PEP) {
	ss.cancel()
	ss.wg.Wait()
	for _, src := range ss.all {
		p.closeSource(src)
	}
}

// agreed is what of the wanted the gateway tells: of lists by itself, of resources when their servers do, or when they are back.
func (ss *sources) agreed(w bridge.Wanted) bridge.Wanted {
	var uris []string
	for _, uri := range w.URIs {
		if slices.ContainsFunc(ss.all, func(s *source) bool { return slices.Contains(s.agreed.URIs, uri) }) ||
			slices.ContainsFunc(ss.awaited, func(w *awaited) bool { return slices.Contains(w.uris, uri) }) {
			uris = append(uris, uri)
		}
	}
	w.URIs = uris
	return w
}

// listenOwn is a stream of the gateway's own.
func (x *exchange) listenOwn() *answer {
	var uris []string
	var changed <-chan struct{}
	if x.era == mcp.EraLegacy {
		x.wanted = everyList()
		uris, changed = x.dialogue().Subscribed()
	} else {
		uris = x.wanted.URIs
	}
	ss := x.openSources(uris)
	defer func() { ss.close(x.p) }()
	if err := x.record("", "ok", http.StatusOK); err != nil {
		x.p.log.Error("audit record lost", "error", err, "request_id", x.rec.GetId())
		return x.unaudited()
	}
	out := x.openStream()
	x.keepOwn(out, ss.agreed(bridge.Wanted{URIs: uris}).URIs)
	defer x.leaveOwn(out)
	if x.era == mcp.EraModern {
		agreed := ss.agreed(x.wanted)
		if !out.send(mcp.AppendEvent(nil, bridge.AppendAcknowledged(nil, x.msg.ID, &agreed))) {
			return nil
		}
	}
	alive := time.NewTicker(x.p.cfg.KeepAlive)
	defer alive.Stop()
	for {
		open := true
		due, stop := ss.due()
		select {
		case <-due:
			open = ss.retry(x, out)
		case <-out.taken():
			return nil
		case h := <-ss.heard:
			open = x.passOn(out, h)
		case <-changed:
			ss.close(x.p)
			uris, changed = x.dialogue().Subscribed()
			ss = x.openSources(uris)
		case <-x.state.Replaced():
			if x.recheck() != nil {
				return nil
			}
			for _, n := range x.changes() {
				open = open && out.send(n)
			}
			open = open && !slices.ContainsFunc(ss.all, func(s *source) bool { return x.secretKilled(s.server) || s.verbatim && !x.verbatim() })
		case <-alive.C:
			open = out.send([]byte(mcp.KeepAlive))
		case <-x.p.draining:
			x.endListen(out)
			return nil
		case <-x.ctx.Done():
			stop()
			return nil
		}
		if stop(); !open {
			x.endListen(out)
			return nil
		}
	}
}

// endListen ends a stream as its era does: a modern one with a result.
func (x *exchange) endListen(out *sseWriter) {
	if x.era == mcp.EraModern {
		out.send(mcp.AppendEvent(nil, bridge.AppendListenEnd(nil, x.msg.ID)))
	}
}

// passOn tells the caller what a source said, if they may know; false when the stream is to end, because the caller is gone
// or because a source is that they rely on: they come back and ask anew.
func (x *exchange) passOn(out *sseWriter, h heardOf) bool {
	if h.m == nil || h.m.Kind == mcp.KindResponse {
		return len(h.from.agreed.URIs) == 0
	}
	uri, updated := bridge.UpdatedURI(h.m)
	switch {
	case updated && !x.mayRead(h.from.server, uri):
		return true
	case !updated && (!h.from.verbatim || h.m.Kind != mcp.KindNotification):
		return true
	}
	body := h.m.Body
	if !h.from.verbatim {
		body = bridge.Tagged(h.m, x.subscription())
	}
	body, _ = x.withoutSecrets(body)
	return out.send(mcp.AppendEvent(nil, oneLine(body)))
}

// subscribe adds or takes away a resource that the session's stream tells of.
func (x *exchange) subscribe() *answer {
	uri := textOf(x.msg.Raw(x.msg.Params), "uri")
	if x.msg.Method == mcp.MethodUnsubscribe {
		x.dialogue().Unsubscribe(uri)
	} else if !x.dialogue().Subscribe(uri) {
		return x.reject(http.StatusOK, mcp.CodeInvalidParams, "too_many_subscriptions", "the session is subscribed to too many resources")
	}
	return ok(mcp.AppendEmptyResult(nil, x.msg.ID, x.era))
}
