// Package cellapi is what the cells' nodes may ask of the control plane: watch what they should serve, fetch shards,
// acknowledge, report, hand over audit records.
//
// Who asks is what the SVID of the connection says and nothing in a message; without one there is Enroll and nothing else. A node learns about the tenants homed in its
// cell and about no others. A node that reads slowly costs one goroutine and no memory: it is sent the present, never a
// backlog.
package cellapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/validate"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot"
)

const (
	chunkSize = 256 << 10
	// maxBody bounds one message of a node: a batch of audit records is the largest.
	maxBody = 16 << 20
	// fetches bounds how many shards the nodes of one cell read at the same time; another cell's wait for none of them.
	fetches = 8

	// How long a call may take, its bytes in and out included. A watch goes on for as long as its certificate.
	usual      = 30 * time.Second
	fetchLimit = 5 * time.Minute
)

// Published is what should be served where.
type Published interface {
	// View is what a cell should know now, and a channel that is closed when there is more.
	View(cell string) (publish.View, <-chan struct{}, bool)
	// MayFetch reports whether a shard belongs to a head homed in the cell.
	MayFetch(cell string, shard snapshot.Digest) bool
	// Rebase asks for a head in place of a delta that a node refused.
	Rebase(tenant controlplane.TenantID, refused snapshot.Version)
}

// Witness takes audit records; sent twice they are stored once.
type Witness interface {
	Deliver(ctx context.Context, cell, node string, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error)
}

// Machines gives nodes their identities.
type Machines interface {
	// Enroll makes a node of whoever holds a join token.
	Enroll(ctx context.Context, req *cellv1.EnrollRequest) (*cellv1.EnrollResponse, error)
	// Renew signs another SVID for a node.
	Renew(ctx context.Context, cell, node string, csr []byte) (*cellv1.MachineIdentity, error)
	// Authority changes when who signs does; nil when nobody here does.
	Authority() []byte
}

// Cells says where all cells are reached, and with the channel when there is something else to say.
type Cells interface {
	Cells() (*cellv1.CellDirectory, <-chan struct{})
}

// Config is what the API stands on.
type Config struct {
	Store     *store.Store
	Published Published
	Witness   Witness
	Fleet     *Fleet
	// Machines is nil where nobody can enrol.
	Machines Machines
	// Cells says where all cells are; nil tells nodes nothing of it.
	Cells  Cells
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service answers the nodes. It is safe for concurrent use.
type Service struct {
	cellv1connect.UnimplementedCellServiceHandler
	cfg Config

	mu      sync.Mutex
	fetches map[string]chan struct{} // by cell; guarded by mu
	// enrolling has a place for each machine that is being enrolled.
	enrolling chan struct{}
}

// New makes the service.
func New(cfg Config) *Service {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{cfg: cfg, fetches: map[string]chan struct{}{}, enrolling: make(chan struct{}, enrolments)}
}

// Handler serves the API on connections whose TLS has verified a node's SVID; on every other it serves Enroll alone.
func (s *Service) Handler() http.Handler {
	server := connect.NewServer(translate(s.cfg.Logger), validate.NewServerInterceptor())
	cellv1connect.RegisterCellServiceHandler(server, s)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, connecthttp.WithReadMaxBytes(maxBody))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, until, err := peer(r)
		if stranger := r.TLS != nil && len(r.TLS.PeerCertificates) == 0; stranger && r.URL.Path == cellv1connect.CellServiceEnrollProcedure {
			r.Body = http.MaxBytesReader(w, r.Body, maxEnrolment)
			until, err = time.Now().Add(enrolLimit), nil
		}
		if err != nil {
			http.Error(w, "a node's SVID is needed", http.StatusForbidden)
			return
		}
		if limit := limitOf(r.URL.Path); limit > 0 {
			until = soonest(until, time.Now().Add(limit))
			// A node that sends or reads a byte now and then must not keep a call open for as long as it likes.
			rc := http.NewResponseController(w)
			if err := errors.Join(rc.SetReadDeadline(until), rc.SetWriteDeadline(until)); err != nil {
				s.cfg.Logger.DebugContext(r.Context(), "a call of a node has no deadline", "error", err)
			}
		}
		// A stream ends with the certificate that opened it.
		ctx, cancel := context.WithDeadline(context.WithValue(r.Context(), nodeKey{}, n), until)
		defer cancel()
		mux.ServeHTTP(w, r.WithContext(ctx))
	})
}

// limitOf is how long a call may take; 0 for a stream.
func limitOf(procedure string) time.Duration {
	switch procedure {
	case cellv1connect.CellServiceWatchProcedure:
		return 0
	case cellv1connect.CellServiceFetchBlobProcedure:
		return fetchLimit
	}
	return usual
}

func soonest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// NewServer is an HTTP server with the limits that the handler needs: HTTP/2 only, streams without an end, and a peer that
// went silent is noticed within seconds.
func NewServer(h http.Handler, log *slog.Logger) *http.Server {
	var p http.Protocols
	p.SetHTTP2(true)
	return &http.Server{
		Handler:           h,
		Protocols:         &p,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second, WriteByteTimeout: 15 * time.Second,
			MaxConcurrentStreams: 64,
		},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Node is one node of a cell.
type Node struct{ Cell, Name string }

type nodeKey struct{}

func nodeFrom(ctx context.Context) Node {
	n, _ := ctx.Value(nodeKey{}).(Node)
	return n
}

func peer(r *http.Request) (Node, time.Time, error) {
	if r.TLS == nil {
		return Node{}, time.Time{}, svid.ErrNoPeer
	}
	id, err := svid.PeerID(*r.TLS)
	if err != nil {
		return Node{}, time.Time{}, err
	}
	cell, name, ok := svid.ParseNode(id)
	if !ok {
		return Node{}, time.Time{}, svid.ErrRefused
	}
	return Node{cell, name}, r.TLS.PeerCertificates[0].NotAfter, nil
}

// translate makes wire errors of problems; what is neither stays inside and is logged.
func translate(log *slog.Logger) connect.ServerInterceptor {
	return func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			err := survive(ctx, spec, stream, next)
			if err == nil || ctx.Err() != nil {
				return err
			}
			n := nodeFrom(ctx)
			if p, ok := problem.As(err); ok {
				log.DebugContext(ctx, "node was refused", "procedure", spec.Procedure, "cell", n.Cell, "node", n.Name, "error", err)
				var code connect.Code
				if code.UnmarshalText([]byte(p.Code.RPC())) != nil {
					code = connect.CodeInternal
				}
				return connect.NewError(code, p.What)
			}
			if connect.CodeOf(err) == connect.CodeUnknown {
				log.WarnContext(ctx, "call of a node failed", "procedure", spec.Procedure, "cell", n.Cell, "node", n.Name, "error", err)
			}
			return err
		}
	}
}

// survive makes an error of a panic, so that it is logged like one.
func survive(ctx context.Context, spec connect.Spec, stream connect.ServerStream, next connect.ServerFunc) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return next(ctx, spec, stream)
}

// place waits for one of the cell's places to read a shard in.
func (s *Service) place(ctx context.Context, cell string) (leave func(), err error) {
	s.mu.Lock()
	places := s.fetches[cell]
	if places == nil {
		places = make(chan struct{}, fetches)
		s.fetches[cell] = places
	}
	s.mu.Unlock()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// FetchBlob streams a shard of a head homed in the node's cell. For any other digest there is nothing.
func (s *Service) FetchBlob(ctx context.Context, req *cellv1.FetchBlobRequest, out cellv1connect.CellServiceFetchBlobServerStream) error {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return err
	}
	digest, ok := snapshot.DigestFrom(req.GetSha256())
	if !ok || !s.cfg.Published.MayFetch(n.Cell, digest) {
		return problem.Newf(problem.NotFound, "", "no shard %x is homed in cell %s", req.GetSha256(), n.Cell)
	}
	leave, err := s.place(ctx, n.Cell)
	if err != nil {
		return err
	}
	defer leave()
	var blob []byte
	err = s.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		blob, err = tx.Blob(ctx, digest[:])
		return err
	})
	if err != nil {
		return err
	}
	for len(blob) > 0 {
		chunk := blob[:min(len(blob), chunkSize)]
		blob = blob[len(chunk):]
		if err := out.Send(&cellv1.FetchBlobResponse{Chunk: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// DeliverAudit hands records to the witness.
func (s *Service) DeliverAudit(ctx context.Context, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return nil, err
	}
	return s.cfg.Witness.Deliver(ctx, n.Cell, n.Name, req)
}
