// Package enroll makes a machine a node of a cell, with a join token and nothing else: the key is made here, the control plane
// signs it, and what comes back is held to the hashes in the token before any of it is believed.
//
// It promises that a machine is afterwards a node in full or not at all, that the secret is shown to nobody but the control
// plane that the token names, and that the same order may be given again after a cut at any point.
package enroll

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/conf"
	"github.com/mcpvault/mcpvault/kit/flock"
	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1/cellv1connect"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const (
	// maxAnswer bounds what the control plane may send, in bytes.
	maxAnswer = 1 << 20
	askLimit  = 20 * time.Second

	// nodeDir is the directory in the data directory that a join makes: cell.yaml, roots.pb and the identity.
	nodeDir     = "node"
	stagingDir  = "node.joining"
	identityDir = "identity"
	configFile  = "cell.yaml"
	rootsFile   = "roots.pb"
)

// Order is what a machine is told, besides what the token says.
type Order struct {
	// Token is the text of the join token.
	Token string
	// DataDir is the node's disk.
	DataDir string
	// Raft and Peer are where the other nodes reach this one, host:port.
	Raft, Peer string
	// TLS and Metrics are where it listens for clients and for probes, host:port.
	TLS, Metrics string
	// TLSCert and TLSKey are the certificate that clients see.
	TLSCert, TLSKey string
	// PublicURLs are what clients type.
	PublicURLs []string
	// Members are nodes of the cell that the control plane may not know yet.
	Members []cell.Member
}

// Joined is what became of it.
type Joined struct {
	Cell, Node string
	// Config is the configuration file to start the node with.
	Config string
	// Until is when the SVID ends, unless it is renewed.
	Until time.Time
	// Others are the members of the cell besides this node.
	Others []string
}

// Join carries an order out. The errors are problems.
func Join(ctx context.Context, o Order) (Joined, error) {
	t, err := jointoken.Parse(o.Token)
	if err != nil {
		return Joined{}, err
	}
	if o.DataDir, err = filepath.Abs(o.DataDir); err != nil {
		return Joined{}, fmt.Errorf("find the data directory: %w", err)
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return Joined{}, problem.Newf(problem.Invalid, "choose another --data-dir", "%s cannot be made", o.DataDir).Because(err)
	}
	lock, err := flock.Open(filepath.Join(o.DataDir, "join.lock"))
	if err != nil {
		return Joined{}, problem.New(problem.Conflict, "another join is under way in this data directory", "wait for it").Because(err)
	}
	defer func() { _ = lock.Close() }()
	final, staging := filepath.Join(o.DataDir, nodeDir), filepath.Join(o.DataDir, stagingDir)
	if _, err := os.Lstat(final); !errors.Is(err, fs.ErrNotExist) {
		return Joined{}, problem.Newf(problem.Conflict, "start it: mcpvault-cell -config "+filepath.Join(final, configFile)+"; or move "+final+" away",
			"this machine is a node already: %s is there", final).Because(err)
	}
	// What was found wrong with the order costs no token.
	if _, err := tls.LoadX509KeyPair(o.TLSCert, o.TLSKey); err != nil {
		return Joined{}, problem.New(problem.Invalid, "the certificate that clients are to see cannot be used", "give it with -tls-cert and -tls-key, PEM").Because(err)
	}
	if err := write(staging, config(o, t, nil)); err != nil {
		return Joined{}, err
	}
	res, key, err := ask(ctx, t, filepath.Join(staging, identityDir))
	if err != nil {
		return Joined{}, err
	}
	until, err := verify(t, res, key)
	if err != nil {
		return Joined{}, err
	}
	c := config(o, t, res)
	if err := stage(staging, c, res, key); err != nil {
		if p, ok := problem.As(err); ok {
			return Joined{}, problem.New(p.Code, p.What, "name the other nodes of the cell, each with -member NODE=RAFT,PEER, and type it again with the same token").Because(err)
		}
		return Joined{}, err
	}
	if err := os.Rename(staging, final); err != nil {
		return Joined{}, fmt.Errorf("put the node's files in place: %w", err)
	}
	return Joined{Cell: t.Cell, Node: t.Node, Config: filepath.Join(final, configFile), Until: until, Others: c.others()}, syncDir(o.DataDir)
}

// ask has the control plane sign a key that is made here, or was made by an attempt before.
func ask(ctx context.Context, t jointoken.Token, dir string) (res *cellv1.EnrollResponse, key []byte, err error) {
	id, err := svid.NodeID(t.TrustDomain, t.Cell, t.Node)
	if err != nil {
		return nil, nil, err
	}
	if key, err = svid.OpenKey(dir); err != nil {
		return nil, nil, err
	}
	csr, err := svid.NewRequest(key, id)
	if err != nil {
		return nil, nil, err
	}
	pinned, err := svid.PinnedTLS(t.TrustDomain, t.Authorities, svid.ControlPlanes(t.TrustDomain), "h2")
	if err != nil {
		return nil, nil, err
	}
	transport := newTransport(pinned)
	defer transport.CloseIdleConnections()
	client := cellv1connect.NewCellServiceClient(connect.NewClient(connecthttp.NewTransport(
		&http.Client{Transport: transport}, strings.TrimRight(t.ControlPlane, "/"), connecthttp.WithReadMaxBytes(maxAnswer))))
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	res, err = client.Enroll(ctx, &cellv1.EnrollRequest{Secret: t.Secret.Reveal(), Cell: t.Cell, Node: t.Node, Csr: csr})
	return res, key, explain(err, t)
}

func newTransport(pinned *tls.Config) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSClientConfig: pinned, TLSHandshakeTimeout: 5 * time.Second,
		Protocols: protocols,
	}
}

// explain says what went wrong, and what to do.
func explain(err error, t jointoken.Token) error {
	var ce *connect.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, svid.ErrPin) || errors.Is(err, svid.ErrRefused):
		return problem.Newf(problem.Denied, "find out who answers there: nothing was sent to it; if the authorities were changed just now, make another token",
			"whoever answers at %s is not the control plane that made the token", t.ControlPlane).Because(err)
	case errors.As(err, &ce) && ce.IsRemote():
		code := problem.FromRPC(ce.Code().String())
		fix := "make another token: mcpvault cell token create " + t.Node + " --cell " + t.Cell
		if code == problem.Conflict {
			fix = "if that was not you, kill the node at once: mcpvault kill node " + t.Cell + "/" + t.Node + "; else make another token"
		}
		if code == problem.Unavailable || code == problem.Exhausted || code == problem.Internal {
			fix = "type the same command again: until " + t.Expires.Format(time.RFC3339) + " the token is good for this machine"
		}
		return problem.New(code, "the control plane says: "+ce.Message(), fix)
	}
	return problem.Newf(problem.Unavailable,
		"nodes join only while it is there (those of the cell go on without it); type the same command again, until "+t.Expires.Format(time.RFC3339)+" the token is good for this machine",
		"the control plane at %s cannot be reached", t.ControlPlane).Because(err)
}

// verify holds an answer to the hashes in the token.
func verify(t jointoken.Token, res *cellv1.EnrollResponse, key []byte) (time.Time, error) {
	wrong := func(what string, err error) (time.Time, error) {
		return time.Time{}, problem.New(problem.Denied, "what the control plane answered is not what the token vouches for: "+what,
			"nothing of it was kept; if keys were changed just now, make another token").Because(err)
	}
	pins, err := svid.Pins(res.GetIdentity().GetBundle())
	if err != nil {
		return wrong("there are no authorities in it", err)
	}
	for _, p := range pins {
		if !slices.Contains(t.Authorities, p) {
			return wrong("there is an authority in it that the token does not name", nil)
		}
	}
	if _, err := seal.OpenRoots(res.GetRoots(), t.Roots); err != nil {
		return wrong("the root keys are others", err)
	}
	id, err := svid.NodeID(t.TrustDomain, t.Cell, t.Node)
	if err != nil {
		return wrong("the name", err)
	}
	until, err := svid.Issued(res.GetIdentity().GetSvid(), key, res.GetIdentity().GetBundle(), id, time.Now())
	if err != nil {
		return wrong("the SVID", err)
	}
	return until, nil
}

// stage writes everything where nobody looks yet.
func stage(dir string, c file, res *cellv1.EnrollResponse, key []byte) error {
	id, own := res.GetIdentity(), filepath.Join(dir, identityDir)
	if err := svid.WriteIdentity(own, id.GetSvid(), key, id.GetBundle()); err != nil {
		return err
	}
	if len(id.GetWorkloadBundle()) > 0 {
		if err := svid.WriteWorkloads(own, id.GetWorkloadBundle()); err != nil {
			return err
		}
	}
	if err := writeFile(filepath.Join(dir, rootsFile), res.GetRoots()); err != nil {
		return err
	}
	if err := write(dir, c); err != nil {
		return err
	}
	return syncDir(dir)
}

// write writes the configuration and reads it as the node will.
func write(dir string, c file) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the node's files: %w", err)
	}
	path := filepath.Join(dir, configFile)
	text, err := c.text()
	if err != nil {
		return err
	}
	if err := writeFile(path, text); err != nil {
		return err
	}
	_, err = conf.Load[cell.Config](path, "")
	return err
}

// writeFile writes a private file and makes it durable.
func writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write the node's files: %w", err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the node's files: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
