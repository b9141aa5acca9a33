package svid_test

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/svid"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// workloadAPI is a SPIFFE Workload API on loopback that issues from the built-in CA.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	updates chan *workload.X509SVIDResponse
}

func (w *workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if md, _ := metadata.FromIncomingContext(stream.Context()); len(md.Get("workload.spiffe.io")) == 0 {
		return status.Error(codes.InvalidArgument, "security header missing")
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case u := <-w.updates:
			if err := stream.Send(u); err != nil {
				return err
			}
		}
	}
}

func x509Response(t *testing.T, ca *svid.CA, id svid.ID) *workload.X509SVIDResponse {
	t.Helper()
	certPEM, keyPEM, err := ca.IssueNode(id, time.Hour)
	must(t, err)
	der := func(b []byte) []byte {
		block, _ := pem.Decode(b)
		return block.Bytes
	}
	if _, err := x509.ParseCertificate(der(certPEM)); err != nil {
		t.Fatal(err)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId: id.String(), X509Svid: der(certPEM), X509SvidKey: der(keyPEM), Bundle: der(ca.Bundle()),
	}}}
}

func startWorkloadAPI(t *testing.T) (*workloadAPI, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	ln, err := net.Listen("unix", path)
	must(t, err)
	api := &workloadAPI{updates: make(chan *workload.X509SVIDResponse, 1)}
	srv := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(srv, api)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Stop()
		<-done
	})
	return api, "unix://" + path
}

func TestTheWorkloadAPIGivesTheIdentityAndRenewsIt(t *testing.T) {
	t.Parallel()
	ca := newCA(t)
	api, socket := startWorkloadAPI(t)
	api.updates <- x509Response(t, ca, nodeID(t, "eu", "n2"))
	src, err := svid.Open(t.Context(), svid.Config{Dir: "/nonexistent", Socket: socket})
	must(t, err)
	defer func() { must(t, src.Close()) }()
	id, err := src.ID()
	must(t, err)
	if id != nodeID(t, "eu", "n2") {
		t.Fatalf("the identity is %s", id)
	}
	addr := serve(t, svid.ServerTLS(source(t, ca, nodeID(t, "eu", "n1")), svid.CellMembers(domain, "eu"), "x"))
	_, err = dial(addr, svid.ClientTLS(src, svid.Exactly(nodeID(t, "eu", "n1")), "x"))
	must(t, err)

	before, err := src.GetX509SVID()
	must(t, err)
	api.updates <- x509Response(t, ca, nodeID(t, "eu", "n2"))
	deadline := time.Now().Add(10 * time.Second)
	for {
		after, err := src.GetX509SVID()
		must(t, err)
		if after.Certificates[0].SerialNumber.Cmp(before.Certificates[0].SerialNumber) != 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the renewed SVID did not arrive")
		}
		time.Sleep(5 * time.Millisecond)
	}
	_, err = dial(addr, svid.ClientTLS(src, svid.Exactly(nodeID(t, "eu", "n1")), "x"))
	must(t, err)
}

// Not parallel: it sets the environment.
func TestTheEndpointVariableIsHeard(t *testing.T) {
	ca := newCA(t)
	api, socket := startWorkloadAPI(t)
	api.updates <- x509Response(t, ca, nodeID(t, "eu", "n3"))
	t.Setenv(svid.SocketEnv, socket)
	src, err := svid.Open(t.Context(), svid.Config{})
	must(t, err)
	defer func() { must(t, src.Close()) }()
	if id, err := src.ID(); err != nil || id != nodeID(t, "eu", "n3") {
		t.Fatalf("got %s, %v", id, err)
	}
}
