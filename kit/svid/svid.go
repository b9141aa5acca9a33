// Package svid is the machine identity of every process: X.509-SVIDs (SPIFFE) from files, from the SPIFFE Workload API or
// from the built-in CA, and the TLS configurations that use them.
//
// It promises that a connection made with ServerTLS and ClientTLS is TLS 1.3, that both ends have shown a certificate of
// the trust domain, that the authorizer was asked on this very connection (sessions are never resumed), and that renewed
// files are used without a restart. Who may do what on the connection is for the caller to decide.
//
// It is the only package that imports go-spiffe.
package svid

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ID is a SPIFFE ID: spiffe://TRUST-DOMAIN/PATH.
type ID = spiffeid.ID

// TrustDomain is the first part of an ID.
type TrustDomain = spiffeid.TrustDomain

// ParseID reads the text form of an id.
func ParseID(s string) (ID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return ID{}, fmt.Errorf("parse SPIFFE ID %q: %w", s, err)
	}
	return id, nil
}

// NodeID is the identity of one node of a cell: spiffe://TD/cell/CELL/node/NODE.
func NodeID(trustDomain, cell, node string) (ID, error) {
	return makeID(trustDomain, "cell", cell, "node", node)
}

// ControlPlaneID is the identity of one control plane process: spiffe://TD/controlplane/NAME.
func ControlPlaneID(trustDomain, name string) (ID, error) {
	return makeID(trustDomain, "controlplane", name)
}

func makeID(trustDomain string, segments ...string) (ID, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return ID{}, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	id, err := spiffeid.FromSegments(td, segments...)
	if err != nil {
		return ID{}, fmt.Errorf("SPIFFE ID of %s: %w", strings.Join(segments, "/"), err)
	}
	return id, nil
}

// ParseNode takes a node's id apart; ok is false for every other kind of id.
func ParseNode(id string) (cell, node string, ok bool) {
	parsed, err := spiffeid.FromString(id)
	if err != nil {
		return "", "", false
	}
	parts := strings.Split(strings.TrimPrefix(parsed.Path(), "/"), "/")
	if len(parts) != 4 || parts[0] != "cell" || parts[2] != "node" {
		return "", "", false
	}
	return parts[1], parts[3], true
}

// ErrNoPeer means that the connection carries no SVID.
var ErrNoPeer = errors.New("the peer showed no SVID")

// PeerID is the id that the peer of a finished handshake has proved.
func PeerID(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", ErrNoPeer
	}
	id, err := x509svid.IDFromCert(cs.PeerCertificates[0])
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoPeer, err)
	}
	return id.String(), nil
}
