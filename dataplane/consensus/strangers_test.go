package consensus_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/celltest"
	"github.com/mcpvault/mcpvault/dataplane/consensus"
	"github.com/mcpvault/mcpvault/dataplane/consensus/quicwire"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

const protocol = "mcpvault-raft"

func identity(t testing.TB, ca *svid.CA, id svid.ID, err error) *svid.Source {
	t.Helper()
	must(t, err)
	dir := t.TempDir()
	certPEM, keyPEM, err := ca.IssueNode(id, time.Hour)
	must(t, err)
	must(t, svid.WriteIdentity(dir, certPEM, keyPEM, ca.Bundle()))
	src, err := svid.Open(t.Context(), svid.Config{Dir: dir})
	must(t, err)
	return src
}

func node(t testing.TB, ca *svid.CA, cell, name string) *svid.Source {
	id, err := svid.NodeID(celltest.TrustDomain, cell, name)
	return identity(t, ca, id, err)
}

// knock sends bytes that begin a Raft message and reports whether the connection was let in: a member's stays open.
func knock(addr string, cfg *tls.Config) error {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(2 * time.Second))
	conn, message := raw, make([]byte, 64)
	if cfg != nil {
		conn, message = tls.Client(raw, cfg), message[:1]
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if err == nil {
		// Raft answered, or TLS sent an alert in the clear.
		err = errors.New("an answer before a whole message")
	}
	return err
}

func TestOnlyMembersAreLetIn(t *testing.T) {
	t.Parallel()
	for _, by := range []struct {
		transport consensus.Transport
		knock     func(addr string, cfg *tls.Config) error
	}{{consensus.TCP, knock}, {consensus.QUIC, knockQUIC}} {
		t.Run(string(by.transport), func(t *testing.T) {
			t.Parallel()
			c := celltest.New(t, 3, over(by.transport))
			c.WaitLeader()
			addr := c.Node("n1").Log.Addr()
			toN1 := svid.CellMembers(celltest.TrustDomain, celltest.CellName, "n1")
			foreign, err := svid.CreateCA(t.TempDir(), celltest.TrustDomain)
			must(t, err)
			cpID, cpErr := svid.ControlPlaneID(celltest.TrustDomain, "cp")
			must(t, by.knock(addr, svid.ClientTLS(node(t, c.CA, celltest.CellName, "n2"), toN1, protocol)))
			believing := svid.ClientTLS(node(t, foreign, celltest.CellName, "n2"), toN1, protocol)
			believing.VerifyPeerCertificate = nil // it takes the server as it is; the server must not take it
			nobody := svid.ClientTLS(node(t, c.CA, celltest.CellName, "n2"), toN1, protocol)
			nobody.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
			for name, cfg := range map[string]*tls.Config{
				"plain bytes":              nil,
				"no certificate":           nobody,
				"a node of another cell":   svid.ClientTLS(node(t, c.CA, "us", "n2"), toN1, protocol),
				"a node that is no member": svid.ClientTLS(node(t, c.CA, celltest.CellName, "n9"), toN1, protocol),
				"a control plane":          svid.ClientTLS(identity(t, c.CA, cpID, cpErr), toN1, protocol),
				"a member of another CA":   believing,
				"a member, other protocol": svid.ClientTLS(node(t, c.CA, celltest.CellName, "n2"), toN1, "h2"),
			} {
				if err := by.knock(addr, cfg); err == nil {
					t.Errorf("%s was let in", name)
				}
			}
			must(t, c.Propose(c.Kill("k")))
		})
	}
}

func over(transport consensus.Transport) func(*consensus.Config) {
	return func(cfg *consensus.Config) { cfg.Transport = transport }
}

// knockQUIC is knock over QUIC; without a configuration it sends bytes that are no QUIC.
func knockQUIC(addr string, cfg *tls.Config) error {
	if cfg == nil {
		conn, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := conn.Write(make([]byte, 1200)); err != nil {
			return err
		}
		if _, err = conn.Read(make([]byte, 1)); err == nil {
			return nil
		}
		return err
	}
	end, err := quicwire.Listen("127.0.0.1:0", cfg, time.Second, func(net.Addr, error) {})
	if err != nil {
		return err
	}
	defer func() { _ = end.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := end.Dial(ctx, addr, cfg)
	if err != nil {
		return err
	}
	stream, err := conn.Open(ctx)
	if err != nil {
		return err
	}
	if _, err := stream.Write(make([]byte, 1)); err != nil {
		return err
	}
	_ = stream.SetDeadline(time.Now().Add(time.Second))
	_, err = stream.Read(make([]byte, 1))
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() && conn.Context().Err() == nil {
		return nil
	}
	if err == nil {
		err = errors.New("an answer before a whole message")
	}
	return err
}

func TestStrangersWhoSayNothingDoNotKeepMembersOut(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3)
	leader := c.WaitLeader()
	follower := others(c.Names, leader)[0]
	for range 40 {
		conn, err := net.Dial("tcp", c.Node(follower).Log.Addr())
		must(t, err)
		defer func() { _ = conn.Close() }()
	}
	c.KillNode(leader)
	c.RestartNode(leader)
	must(t, c.Propose(c.Kill("k")))
	c.Eventually("the follower has it", func() bool { return len(c.Node(follower).Store.Kills()) == 1 })
}

// A member that answers at another member's address must not be taken for it.
func TestWhoAnswersAtAnAddressMustBeTheNodeNamedThere(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) {
		if cfg.Node != "n1" {
			return
		}
		var n2 string
		for _, p := range cfg.Peers {
			if p.Node == "n2" {
				n2 = p.Addr
			}
		}
		for i := range cfg.Peers {
			if cfg.Peers[i].Node == "n3" {
				cfg.Peers[i].Addr = n2
			}
		}
	})
	// n1 cannot reach n3: with n2 gone it has no quorum, though n2's address answered for two names.
	c.KillNode("n2")
	must(t, c.Propose(c.Kill("k"), "n3"))
	if c.Node("n1").Log.Leads() {
		t.Fatal("n1 leads with the votes of one node that it took for two")
	}
}

func TestANodeThatIsNotAdmittedIsLeftOut(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 3, func(cfg *consensus.Config) {
		cfg.Admit = func(node string) error {
			if node == "n3" {
				return fmt.Errorf("node %s was killed", node)
			}
			return nil
		}
	})
	must(t, c.Propose(c.Kill("k"), "n1", "n2"))
	if got := len(c.Node("n3").Store.Kills()); got != 0 {
		t.Fatalf("n3 has %d entries", got)
	}
}

// A member that is expelled loses the connections that it has, too.
func TestAMemberThatIsExpelledIsCutOff(t *testing.T) {
	t.Parallel()
	for _, transport := range []consensus.Transport{consensus.TCP, consensus.QUIC} {
		t.Run(string(transport), func(t *testing.T) {
			t.Parallel()
			expelledIsCutOff(t, transport)
		})
	}
}

func expelledIsCutOff(t *testing.T, transport consensus.Transport) {
	var expelled atomic.Bool
	c := celltest.New(t, 3, over(transport), func(cfg *consensus.Config) {
		cfg.Admit = func(node string) error {
			if expelled.Load() && node == "n3" {
				return errors.New("expelled")
			}
			return nil
		}
	})
	must(t, c.Propose(c.Kill("before")))
	c.Eventually("n3 is in", func() bool { return len(c.Node("n3").Store.Kills()) == 1 })
	expelled.Store(true)
	c.Eventually("n3 hears of nobody", func() bool {
		leader, ok := c.Node("n3").Log.Leader()
		return (!ok || leader == "n3") && !c.Node("n3").Log.Leads()
	})
	must(t, c.Propose(c.Kill("after"), "n1", "n2"))
	if got := len(c.Node("n3").Store.Kills()); got != 1 {
		t.Fatalf("n3 has %d kills", got)
	}
}

func TestADamagedLogStaysOutOfServiceAndTheStoreServes(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string, size int64) error{
		"cut": func(path string, _ int64) error { return os.Truncate(path, 4*4096) },
		"overwritten": func(path string, size int64) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			// Everything but the two head pages: wherever the records are now.
			junk := make([]byte, min(size, 256<<10)-2*4096)
			_, err = f.WriteAt(junk, 2*4096)
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := celltest.New(t, 3)
			u := c.Update(1, c.Head(1, 1))
			must(t, c.Propose(u))
			c.Eventually("n1 has it", func() bool { return same(c, "n1", u.GetUpdate()) })
			c.KillNode("n1")
			path := filepath.Join(c.Node("n1").Dir, "raft", "raft.db")
			info, err := os.Stat(path)
			must(t, err)
			must(t, spoil(path, info.Size()))
			c.RestartNode("n1")
			n := c.Node("n1")
			c.Eventually("n1 says what is wrong", func() bool { return n.Log.Problem() != nil })
			if p, ok := problem.As(n.Log.Problem()); !ok || p.Fix == "" {
				t.Fatalf("no way out is told: %v", n.Log.Problem())
			}
			if n.Log.State() != "shutdown" || !same(c, "n1", u.GetUpdate()) {
				t.Fatalf("state %s", n.Log.State())
			}
			if _, err := n.Log.Propose(t.Context(), c.Kill("k")); problem.CodeOf(err) != problem.Unavailable {
				t.Fatalf("got %v", err)
			}
			// The others go on, and nothing of the damage reaches them.
			must(t, c.Propose(c.Kill("k"), "n2", "n3"))
			// What the message tells to do works.
			c.KillNode("n1")
			must(t, os.RemoveAll(filepath.Join(n.Dir, "raft")))
			c.RestartNode("n1")
			c.Eventually("n1 is up to date", func() bool { return len(n.Store.Kills()) == 1 })
		})
	}
}

func TestATakenAddressIsToldAtOnce(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { _ = ln.Close() }()
	c := celltest.New(t, 1)
	c.WaitLeader()
	src := node(t, c.CA, celltest.CellName, "n1")
	log, err := consensus.New(consensus.Config{
		Cell: celltest.CellName, Node: "n1", TrustDomain: celltest.TrustDomain, Dir: t.TempDir(), Bind: ln.Addr().String(),
		Peers: []consensus.Peer{{Node: "n1"}}, Identity: src, Store: c.Node("n1").Store, Trust: nobody{},
	})
	must(t, err)
	if err := log.Run(t.Context()); err == nil {
		t.Fatal("Run returned no error")
	}
}

// nobody trusts nothing.
type nobody struct{}

var errNobody = io.ErrUnexpectedEOF

func (nobody) VerifyUpdate(*cellv1.Update) error { return errNobody }

func (nobody) VerifyDelta(*snapshotv1.SignedDelta) error { return errNobody }

func (nobody) VerifyKill([]byte) (string, error) { return "", errNobody }

func TestAWrongMemberListIsRefused(t *testing.T) {
	t.Parallel()
	c := celltest.New(t, 1)
	good := consensus.Config{
		Cell: celltest.CellName, Node: "n1", TrustDomain: celltest.TrustDomain, Peers: []consensus.Peer{{Node: "n1"}},
		Identity: node(t, c.CA, celltest.CellName, "n1"), Store: c.Node("n1").Store, Trust: nobody{},
	}
	_, err := consensus.New(good)
	must(t, err)
	for name, change := range map[string]func(*consensus.Config){
		"not among them": func(cfg *consensus.Config) { cfg.Node = "n2" },
		"named twice":    func(cfg *consensus.Config) { cfg.Peers = append(cfg.Peers, cfg.Peers[0]) },
		"not a name":     func(cfg *consensus.Config) { cfg.Peers = append(cfg.Peers, consensus.Peer{Node: "a/b"}) },
		"no trust":       func(cfg *consensus.Config) { cfg.Trust = nil },
	} {
		bad := good
		change(&bad)
		if _, err := consensus.New(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
