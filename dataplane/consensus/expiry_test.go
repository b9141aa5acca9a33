package consensus_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// A connection that was made with an SVID which has ended since could not be made any more: it is closed, and a session of it is
// never resumed.
func TestAConnectionToTheLogEndsWithItsSVID(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	c.WaitLeader()
	id, err := svid.NodeID(celltest.TrustDomain, celltest.CellName, "n2")
	must(t, err)
	certPEM, keyPEM, err := c.CA.IssueNode(id, 3*time.Second)
	must(t, err)
	dir := t.TempDir()
	must(t, svid.WriteIdentity(dir, certPEM, keyPEM, c.CA.Bundle()))
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	must(t, err)
	until, err := src.NotAfter()
	must(t, err)
	cfg := svid.ClientTLS(src, svid.CellMembers(celltest.TrustDomain, celltest.CellName, "n1"), protocol)
	cfg.SessionTicketsDisabled, cfg.ServerName = false, "n1"
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	addr := c.Node("n1").Log.Addr()
	for range 2 {
		conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr)
		must(t, err)
		if conn.(*tls.Conn).ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		must(t, conn.Close())
	}
	// One that was let in: the server has finished its side when it has read the first bytes.
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(t.Context(), "tcp", addr)
	must(t, err)
	defer func() { _ = conn.Close() }()
	must(t, conn.SetReadDeadline(until.Add(5*time.Second)))
	_, err = io.Copy(io.Discard, conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatal("five seconds after the end of its SVID it is open")
	}
	if early := time.Until(until); early > time.Second {
		t.Errorf("it was closed %s before the end of its SVID", early)
	}
}
