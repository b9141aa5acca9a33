package edge

import (
	"crypto/tls"
	"crypto/x509"
	"net"
)

// VerifyClient judges the certificates that the client at an address has shown, leaf first; an error ends the handshake.
// host is the name that the client asked for, "" when it named none.
type VerifyClient func(from net.Addr, host string, chain []*x509.Certificate) error

// judged is an error of a VerifyClient.
type judged struct{ error }

// Unwrap returns it.
func (j *judged) Unwrap() error { return j.error }

// asking returns a configuration that asks clients for a certificate, takes those without one, and has verify judge the
// others on each connection: no session is resumed.
func asking(t *tls.Config, verify VerifyClient) *tls.Config {
	t.ClientAuth = tls.RequestClientCert
	judge := func(from net.Addr) func(tls.ConnectionState) error {
		return func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			if err := verify(from, cs.ServerName, cs.PeerCertificates); err != nil {
				return &judged{err}
			}
			return nil
		}
	}
	each := t.Clone()
	t.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := each.Clone()
		c.VerifyConnection = judge(hello.Conn.RemoteAddr())
		return c, nil
	}
	return t
}
