package cell

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	"github.com/mcpvault/mcpvault/kit/svid"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// from is a request on a connection of a node of cell eu.
func from(t *testing.T, ca *svid.CA, node string) *http.Request {
	t.Helper()
	id, err := svid.NodeID("mcpvault.test", "eu", node)
	if err != nil {
		t.Fatal(err)
	}
	raw, _, err := ca.IssueNode(id, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	return r
}

func TestAPeerThatWasKilledIsNeitherHeardNorAsked(t *testing.T) {
	t.Parallel()
	ca, err := svid.CreateCA(filepath.Join(t.TempDir(), "ca"), "mcpvault.test")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{cfg: Config{Cell: "eu", Node: "n1"}, pdp: pdp.New("")}
	served := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	status := func(h http.Handler, r *http.Request) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	asked := 0
	next := roundTrip(func(*http.Request) (*http.Response, error) { asked++; return &http.Response{}, nil })
	ask := func(node string) error {
		_, err := toAlive{n, node, next}.RoundTrip(httptest.NewRequest(http.MethodGet, "/", nil))
		return err
	}
	kill := func(subject string) {
		n.pdp.Kill(&snapshotv1.Kill{Kind: snapshotv1.KillKind_KILL_KIND_NODE, Subject: subject})
	}
	kill("us/n2") // the node of that name in another cell
	if got := status(n.fromAlive(served), from(t, ca, "n2")); got != http.StatusNoContent || ask("n2") != nil || n.admit("n2") != nil {
		t.Errorf("before it is killed: %d", got)
	}
	kill("eu/n2")
	if got := status(n.fromAlive(served), from(t, ca, "n2")); got != http.StatusForbidden {
		t.Errorf("its requests are answered %d", got)
	}
	if err := ask("n2"); err == nil || asked != 1 {
		t.Errorf("it is asked: %v", err)
	}
	if err := n.admit("n2"); err == nil || !strings.Contains(err.Error(), "was killed") {
		t.Errorf("it is in the log: %v", err)
	}
	if got := status(n.fromAlive(served), from(t, ca, "n3")); got != http.StatusNoContent || ask("n3") != nil || n.admit("n3") != nil {
		t.Errorf("another peer: %d", got)
	}
	if got := status(n.whenAlive(served), httptest.NewRequest(http.MethodGet, "/", nil)); got != http.StatusNoContent || n.killedProblem() != nil {
		t.Errorf("this node serves %d", got)
	}
	kill("eu/n1")
	if got := status(n.whenAlive(served), httptest.NewRequest(http.MethodGet, "/", nil)); got != http.StatusServiceUnavailable || n.killedProblem() == nil {
		t.Errorf("killed itself it serves %d", got)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
