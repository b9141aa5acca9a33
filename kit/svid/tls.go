package svid

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Authorizer says whether a peer whose certificate was verified may connect; a nil error lets it in.
type Authorizer func(peer ID) error

// ErrRefused is in the chain of every refusal of an Authorizer made here.
var ErrRefused = errors.New("the peer's identity is not admitted here")

// Exactly admits the given ids and no other.
func Exactly(ids ...ID) Authorizer {
	return func(peer ID) error {
		if slices.Contains(ids, peer) {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrRefused, peer)
	}
}

// CellMembers admits nodes of one cell: those named, or every node of the cell when none is.
func CellMembers(trustDomain, cell string, nodes ...string) Authorizer {
	return func(peer ID) error {
		c, n, ok := ParseNode(peer.String())
		if ok && peer.TrustDomain().Name() == trustDomain && c == cell && (len(nodes) == 0 || slices.Contains(nodes, n)) {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrRefused, peer)
	}
}

// AnyCellNode admits every node of every cell of the trust domain: what the control plane listens for.
func AnyCellNode(trustDomain string) Authorizer {
	return func(peer ID) error {
		if _, _, ok := ParseNode(peer.String()); ok && peer.TrustDomain().Name() == trustDomain {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrRefused, peer)
	}
}

// ControlPlanes admits every control plane process of the trust domain.
func ControlPlanes(trustDomain string) Authorizer {
	return func(peer ID) error {
		name, found := strings.CutPrefix(peer.Path(), "/controlplane/")
		if found && name != "" && !strings.Contains(name, "/") && peer.TrustDomain().Name() == trustDomain {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrRefused, peer)
	}
}

// AnyOf admits whom one of the authorizers admits.
func AnyOf(authorizers ...Authorizer) Authorizer {
	return func(peer ID) error {
		for _, a := range authorizers {
			if a(peer) == nil {
				return nil
			}
		}
		return fmt.Errorf("%w: %s", ErrRefused, peer)
	}
}

// Identity is what a TLS configuration needs; *Source is one.
type Identity interface {
	x509svid.Source
	x509bundle.Source
}

// ServerTLS is the configuration of a listener that speaks to SVID holders only. With protocols given, the peer must
// agree on one of them, unless they include "http/1.1", which a client may speak without saying so.
//
// Session tickets are off: a resumed session would skip the check of the certificate, so that a peer who has been
// refused since could come back until its certificate ends.
func ServerTLS(id Identity, allow Authorizer, protocols ...string) *tls.Config {
	cfg := tlsconfig.MTLSServerConfig(id, id, adapt(allow))
	harden(cfg, protocols)
	cfg.SessionTicketsDisabled = true
	return cfg
}

// ClientTLS is the configuration of a connection to an SVID holder. Host names are not looked at: the authorizer names
// who may answer.
func ClientTLS(id Identity, allow Authorizer, protocols ...string) *tls.Config {
	cfg := tlsconfig.MTLSClientConfig(id, id, adapt(allow))
	harden(cfg, protocols)
	cfg.SessionTicketsDisabled = true
	cfg.ClientSessionCache = nil
	return cfg
}

func adapt(allow Authorizer) tlsconfig.Authorizer {
	return func(peer spiffeid.ID, _ [][]*x509.Certificate) error { return allow(peer) }
}

func harden(cfg *tls.Config, protocols []string) {
	cfg.MinVersion = tls.VersionTLS13
	cfg.NextProtos = slices.Clone(protocols)
	strict := len(protocols) > 0 && !slices.Contains(protocols, "http/1.1")
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		// Runs on resumed sessions too, where the certificate check does not: the second lock on that door.
		if cs.DidResume {
			return fmt.Errorf("%w: a resumed TLS session", ErrRefused)
		}
		if strict && !slices.Contains(protocols, cs.NegotiatedProtocol) {
			return fmt.Errorf("%w: it does not speak %v", ErrRefused, protocols)
		}
		return nil
	}
}
