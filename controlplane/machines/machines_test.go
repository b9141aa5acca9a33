package machines_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/directory"
	"github.com/mcpvault/mcpvault/controlplane/keyring/keyringtest"
	"github.com/mcpvault/mcpvault/controlplane/machines"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/controlplane/store/storetest"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

const domain = "mcpvault.test"

// cells are the ones that there are: acme is homed in eu, globex in both.
type cells struct{}

func (cells) Cells() []string { return []string{"eu", "us"} }

func (cells) Homes(tenant string) []string {
	if tenant == "acme" {
		return []string{"eu"}
	}
	return []string{"eu", "us"}
}

type bundle struct {
	st           *store.Store
	svc          *machines.Service
	dir          *directory.Service
	auth         *snapshottest.Authority
	root         *svid.CA
	acme, globex context.Context
	acmeID       controlplane.TenantID

	mu sync.Mutex
	at time.Time // guarded by mu
}

func (b *bundle) now() time.Time { b.mu.Lock(); defer b.mu.Unlock(); return b.at }

func (b *bundle) pass(d time.Duration) { b.mu.Lock(); defer b.mu.Unlock(); b.at = b.at.Add(d) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{at: time.Now().UTC().Truncate(time.Second), auth: snapshottest.NewAuthority(t)}
	b.st = storetest.OpenAt(t, storetest.URL(t), b.now)
	acme, globex := storetest.Tenant(t, b.st, "acme"), storetest.Tenant(t, b.st, "globex")
	b.acmeID = acme.ID
	as := func(tenant controlplane.Tenant) context.Context {
		return controlplane.WithCaller(t.Context(), controlplane.Caller{
			Principal: "root", TenantID: tenant.ID, Tenant: tenant.Name, Home: tenant.Name, Roles: []string{controlplane.RoleOwner},
		})
	}
	b.acme, b.globex = as(acme), as(globex)
	var err error
	b.root, err = svid.CreateRoot(filepath.Join(t.TempDir(), "root"), domain)
	must(t, err)
	dir := filepath.Join(t.TempDir(), "ca")
	_, err = b.root.CreateIntermediate(dir, 90*24*time.Hour)
	must(t, err)
	log := slog.New(slog.DiscardHandler)
	authority, err := svid.OpenAuthority(dir, domain, log)
	must(t, err)
	b.dir = directory.New(directory.Config{Store: b.st})
	b.svc = machines.New(machines.Config{
		Store: b.st, Cells: cells{}, Roots: keyringtest.Of(t, b.auth), Authority: authority, WorkloadDir: filepath.Join(t.TempDir(), "workloads"),
		TrustDomain: domain, CellURL: "https://cp.test:8404", Logger: log, Now: b.now,
	})
	return b
}

// token makes one for a node and reads it as the machine does.
func (b *bundle) token(t *testing.T, cell, node string) (jointoken.Token, string) {
	t.Helper()
	res, err := b.svc.CreateJoinToken(b.acme, &adminv1.CreateJoinTokenRequest{Cell: cell, Node: node})
	must(t, err)
	tok, err := jointoken.Parse(res.GetSecret())
	must(t, err)
	return tok, res.GetToken().GetId()
}

func request(t *testing.T, cell, node string) (csr, key []byte) {
	t.Helper()
	id, err := svid.NodeID(domain, cell, node)
	must(t, err)
	key, err = svid.NewKey()
	must(t, err)
	csr, err = svid.NewRequest(key, id)
	must(t, err)
	return csr, key
}

func (b *bundle) enroll(t *testing.T, tok jointoken.Token, cell, node string, csr []byte) (*cellv1.EnrollResponse, error) {
	t.Helper()
	return b.svc.Enroll(t.Context(), &cellv1.EnrollRequest{Secret: tok.Secret.Reveal(), Cell: cell, Node: node, Csr: csr})
}

func refused(t *testing.T, what string, err error, want problem.Code) {
	t.Helper()
	if p, ok := problem.As(err); !ok || p.Code != want || p.What == "" {
		t.Errorf("%s: want a %s problem, got %v", what, want, err)
	}
}

func (b *bundle) ledger(t *testing.T) []string {
	t.Helper()
	var out []string
	must(t, b.st.Read(t.Context(), b.acmeID, func(tx *store.Tx) error {
		list, err := tx.Changes(t.Context(), 100)
		out = nil
		for _, c := range list {
			out = append(out, c.Actor+" "+c.Action+" "+c.Object)
		}
		return err
	}))
	slices.Reverse(out)
	return out
}

func TestATokenMakesAMachineANode(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.reported(t, "eu", "n1", &cellv1.CellMember{Node: "n1", Raft: "n1.test:8411", Peer: "n1.test:8412"})
	b.reported(t, "us", "n9", &cellv1.CellMember{Node: "n9", Raft: "n9.test:8411", Peer: "n9.test:8412"})
	tok, id := b.token(t, "eu", "n2")
	if tok.ControlPlane != "https://cp.test:8404" || tok.Cell != "eu" || tok.Node != "n2" || !tok.Expires.Equal(b.now().Add(10*time.Minute)) {
		t.Errorf("the token says %+v", tok)
	}
	csr, key := request(t, "eu", "n2")
	res, err := b.enroll(t, tok, "eu", "n2", csr)
	must(t, err)
	// What the machine does with it.
	pins, err := svid.Pins(res.GetIdentity().GetBundle())
	must(t, err)
	if !slices.Equal(pins, tok.Authorities) {
		t.Error("the bundle is not what the token has the hashes of")
	}
	nodeID, err := svid.NodeID(domain, "eu", "n2")
	must(t, err)
	until, err := svid.Issued(res.GetIdentity().GetSvid(), key, b.root.Bundle(), nodeID, time.Now())
	must(t, err)
	if left := until.Sub(b.now()); left != 7*24*time.Hour {
		t.Errorf("the SVID lives for %s", left)
	}
	if _, err := seal.OpenRoots(res.GetRoots(), tok.Roots); err != nil {
		t.Errorf("the roots: %v", err)
	}
	if m := res.GetMembers(); len(m) != 1 || m[0].GetNode() != "n1" || m[0].GetRaft() != "n1.test:8411" {
		t.Errorf("members %v", m)
	}
	if got := b.ledger(t); !slices.Equal(got[len(got)-2:], []string{"root join_token.create node:eu/n2", "node:eu/n2 node.enroll node:eu/n2"}) {
		t.Errorf("the ledger says %v", got)
	}
	list, err := b.svc.ListJoinTokens(b.acme, &adminv1.ListJoinTokensRequest{})
	must(t, err)
	if l := list.GetTokens(); len(l) != 1 || l[0].GetId() != id || l[0].GetUsedMs() == 0 || l[0].GetNode() != "n2" || l[0].GetCreatedBy() != "root" {
		t.Errorf("listed %v", l)
	}
}

// reported has a node say how it is.
func (b *bundle) reported(t *testing.T, cell, node string, at *cellv1.CellMember) {
	t.Helper()
	raw, err := proto.Marshal(&cellv1.NodeStatus{Cell: cell, Node: node, RaftAddr: at.GetRaft(), PeerAddr: at.GetPeer()})
	must(t, err)
	must(t, b.st.Platform(t.Context(), func(tx *store.Tx) error {
		if err := tx.EnsureCell(t.Context(), cell); err != nil {
			return err
		}
		return tx.SetNodeStatus(t.Context(), store.NodeStatus{Cell: cell, Node: node, Status: raw})
	}))
}

func TestATokenIsForOneMachine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tok, _ := b.token(t, "eu", "n2")
	// Twenty machines at once: one of them is the node.
	var wg sync.WaitGroup
	var mu sync.Mutex
	var in, out int
	for range 20 {
		csr, _ := request(t, "eu", "n2")
		wg.Go(func() {
			_, err := b.svc.Enroll(t.Context(), &cellv1.EnrollRequest{Secret: tok.Secret.Reveal(), Cell: "eu", Node: "n2", Csr: csr})
			mu.Lock()
			defer mu.Unlock()
			switch problem.CodeOf(err) {
			case problem.Conflict:
				out++
			default:
				if err == nil {
					in++
				}
			}
		})
	}
	wg.Wait()
	if in != 1 || out != 19 {
		t.Fatalf("%d machines became the node, %d were told that another did", in, out)
	}
}

// The answer was lost on the way: the machine asks again, with the same key, and gets another SVID for it.
func TestTheSameMachineMayAskAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tok, _ := b.token(t, "eu", "n2")
	csr, key := request(t, "eu", "n2")
	id, err := svid.NodeID(domain, "eu", "n2")
	must(t, err)
	for range 2 {
		res, err := b.enroll(t, tok, "eu", "n2", csr)
		must(t, err)
		_, err = svid.Issued(res.GetIdentity().GetSvid(), key, b.root.Bundle(), id, time.Now())
		must(t, err)
	}
	other, _ := request(t, "eu", "n2")
	_, err = b.enroll(t, tok, "eu", "n2", other)
	refused(t, "another key", err, problem.Conflict)
	b.pass(10 * time.Minute)
	_, err = b.enroll(t, tok, "eu", "n2", csr)
	refused(t, "again after its time", err, problem.Denied)
}

func TestATokenIsGoodForNothingElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tok, _ := b.token(t, "eu", "n2")
	csr, _ := request(t, "eu", "n2")
	for name, c := range map[string]struct{ cell, node string }{"another node": {"eu", "n3"}, "another cell": {"us", "n2"}} {
		other, _ := request(t, c.cell, c.node)
		_, err := b.enroll(t, tok, c.cell, c.node, other)
		refused(t, name, err, problem.Denied)
	}
	other := tok
	other.Secret = jointoken.NewSecret()
	_, err := b.enroll(t, other, "eu", "n2", csr)
	refused(t, "another secret", err, problem.Denied)
	// A request for more than the token gives is refused, and the token is still good.
	n1, _ := request(t, "eu", "n1")
	_, err = b.enroll(t, tok, "eu", "n2", n1)
	refused(t, "another id", err, problem.Invalid)
	_, err = b.enroll(t, tok, "eu", "n2", []byte("hello"))
	refused(t, "no request", err, problem.Invalid)
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	uri, err := url.Parse("spiffe://" + domain + "/cell/eu/node/n2")
	must(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{uri}}, key)
	must(t, err)
	_, err = b.enroll(t, tok, "eu", "n2", der)
	refused(t, "another kind of key", err, problem.Invalid)
	_, err = b.enroll(t, tok, "eu", "n2", csr)
	must(t, err)
}

func TestATokenEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	csr, _ := request(t, "eu", "n2")
	late, _ := b.token(t, "eu", "n2")
	b.pass(10*time.Minute + time.Second)
	_, err := b.enroll(t, late, "eu", "n2", csr)
	refused(t, "ten minutes later", err, problem.Denied)

	tok, id := b.token(t, "eu", "n2")
	for range 2 {
		_, err = b.svc.RevokeJoinToken(b.acme, &adminv1.RevokeJoinTokenRequest{Id: id})
		must(t, err)
	}
	_, err = b.enroll(t, tok, "eu", "n2", csr)
	refused(t, "a revoked one", err, problem.Denied)
	_, err = b.svc.RevokeJoinToken(b.acme, &adminv1.RevokeJoinTokenRequest{Id: "01K8Z3V9QJ7W2M5T4R6Y8X0ABC"})
	refused(t, "revoking what is not there", err, problem.NotFound)

	gone, _ := b.token(t, "eu", "n4")
	b.kill(t, "eu/n4")
	csr4, _ := request(t, "eu", "n4")
	_, err = b.enroll(t, gone, "eu", "n4", csr4)
	refused(t, "a killed node", err, problem.Denied)
	_, err = b.svc.CreateJoinToken(b.acme, &adminv1.CreateJoinTokenRequest{Cell: "eu", Node: "n4"})
	refused(t, "a token for a killed node", err, problem.Denied)
	_, err = b.svc.CreateJoinToken(b.acme, &adminv1.CreateJoinTokenRequest{Cell: "mars", Node: "n1"})
	refused(t, "a token for no cell", err, problem.NotFound)
	if got := b.ledger(t); !slices.Contains(got, "root join_token.revoke node:eu/n2") {
		t.Errorf("the ledger says %v", got)
	}
}

func (b *bundle) kill(t *testing.T, node string) {
	t.Helper()
	must(t, b.st.Platform(t.Context(), func(tx *store.Tx) error {
		_, err := tx.InsertPlatformKill(t.Context(), store.Kill{ID: store.NewULID(b.now()), Kind: "node", Subject: node, IssuedAt: b.now(), Envelope: []byte{1}})
		return err
	}))
}

func TestASecretIsStoredNowhere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tok, _ := b.token(t, "eu", "n2")
	must(t, b.st.Read(t.Context(), b.acmeID, func(tx *store.Tx) error {
		list, err := tx.Changes(t.Context(), 100)
		for _, c := range list {
			if bytes.Contains([]byte(c.Detail), tok.Secret.Reveal()) {
				t.Error("the ledger has it")
			}
		}
		return err
	}))
	must(t, b.st.Platform(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.JoinTokenBySecret(t.Context(), tok.Secret.Reveal()); err == nil {
			t.Error("the table has it")
		}
		return nil
	}))
}

func TestANodeRenewsItsOwnNameOnly(t *testing.T) {
	t.Parallel()
	b := setup(t)
	csr, key := request(t, "eu", "n2")
	id, err := svid.NodeID(domain, "eu", "n2")
	must(t, err)
	res, err := b.svc.Renew(t.Context(), "eu", "n2", csr)
	must(t, err)
	_, err = svid.Issued(res.GetSvid(), key, b.root.Bundle(), id, time.Now())
	must(t, err)
	_, err = b.svc.Renew(t.Context(), "eu", "n1", csr)
	refused(t, "another's name", err, problem.Invalid)
	if !bytes.Equal(b.svc.Authority(), svid.AuthorityOf(res.GetSvid(), res.GetBundle())) {
		t.Error("the node would renew for ever: it finds another authority than the one that is told")
	}
}

func TestAWorkloadGetsAnSVIDOfItsOwnTrustDomain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const name = "spiffe://eu.workloads.mcpvault.test/org/acme/billing"
	id, err := svid.ParseID(name)
	must(t, err)
	key, err := svid.NewKey()
	must(t, err)
	csr, err := svid.NewRequest(key, id)
	must(t, err)
	ask := func(ctx context.Context, change func(*adminv1.IssueWorkloadRequest)) (*adminv1.IssueWorkloadResponse, error) {
		req := &adminv1.IssueWorkloadRequest{Cell: "eu", Name: "billing", Csr: csr}
		change(req)
		return b.svc.IssueWorkload(ctx, req)
	}
	same := func(*adminv1.IssueWorkloadRequest) {}
	_, err = ask(b.acme, same)
	refused(t, "a workload that nobody has made", err, problem.NotFound)
	_, err = b.dir.CreateUser(b.acme, &adminv1.CreateUserRequest{Name: name, Kind: adminv1.UserKind_USER_KIND_WORKLOAD})
	must(t, err)
	res, err := ask(b.acme, same)
	must(t, err)
	until, err := svid.Issued(res.GetSvid(), key, res.GetBundle(), id, time.Now())
	must(t, err)
	if res.GetSpiffeId() != name || until.Sub(b.now()) != time.Hour || res.GetNotAfterMs() != until.UnixMilli() {
		t.Errorf("got %s until %s", res.GetSpiffeId(), until)
	}
	if err := second(svid.Issued(res.GetSvid(), key, b.root.Bundle(), id, time.Now())); err == nil {
		t.Error("the nodes' authority has signed it")
	}
	// Nodes learn whom to believe with their own SVIDs.
	nodeCSR, _ := request(t, "eu", "n2")
	node, err := b.svc.Renew(t.Context(), "eu", "n2", nodeCSR)
	must(t, err)
	if !bytes.Equal(node.GetWorkloadBundle(), res.GetBundle()) || node.GetWorkloadTrustDomain() != "eu.workloads.mcpvault.test" {
		t.Error("the cell's nodes believe another authority")
	}
	if got := b.ledger(t); got[len(got)-1] != "root workload.issue user:"+name {
		t.Errorf("the ledger says %v", got)
	}

	_, err = ask(b.globex, same)
	refused(t, "another organisation's workload", err, problem.NotFound)
	_, err = b.dir.CreateUser(b.globex, &adminv1.CreateUserRequest{Name: name, Kind: adminv1.UserKind_USER_KIND_WORKLOAD})
	must(t, err)
	_, err = ask(b.globex, same)
	refused(t, "another organisation's name, taken for its own", err, problem.NotFound)
	_, err = ask(b.acme, func(r *adminv1.IssueWorkloadRequest) { r.Cell = "us" })
	refused(t, "a cell that is no home", err, problem.NotFound)
	_, err = ask(b.acme, func(r *adminv1.IssueWorkloadRequest) { r.Ttl = durationpb.New(2 * time.Hour) })
	refused(t, "two hours", err, problem.Invalid)
	_, err = ask(b.acme, func(r *adminv1.IssueWorkloadRequest) { r.Csr = nodeCSR })
	refused(t, "a node's id", err, problem.Invalid)
	_, err = b.dir.SetUserDisabled(b.acme, &adminv1.SetUserDisabledRequest{Name: name, Disabled: true})
	must(t, err)
	_, err = ask(b.acme, same)
	refused(t, "a disabled workload", err, problem.Denied)
}

func second[T any](_ T, err error) error { return err }

func TestWithoutAnAuthorityNobodyJoins(t *testing.T) {
	t.Parallel()
	svc := machines.New(machines.Config{Cells: cells{}, Logger: slog.New(slog.DiscardHandler)})
	_, err := svc.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Cell: "eu", Node: "n2"})
	refused(t, "a token", err, problem.Invalid)
	_, err = svc.Enroll(t.Context(), &cellv1.EnrollRequest{})
	refused(t, "joining", err, problem.Invalid)
	_, err = svc.Renew(t.Context(), "eu", "n2", nil)
	refused(t, "renewing", err, problem.Invalid)
	if svc.Authority() != nil {
		t.Error("nodes are told to renew")
	}
}
