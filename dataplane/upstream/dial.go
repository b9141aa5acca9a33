package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/kit/egress"
)

// maxAddresses bounds what is taken of a resolver's answer.
const maxAddresses = 16

// errOnlyHTTP2 means that the server's TLS has nothing to do with HTTP/1.1.
var errOnlyHTTP2 = errors.New("the server speaks HTTP/2 only")

// dial connects to the first address of the destination that can be reached. Nothing of a request has been sent when it
// fails: its errors are ErrUnavailable, ErrIdentity, errOnlyHTTP2 or the context's.
func (d *destination) dial(ctx context.Context, protocol string) (*conn, error) {
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, d.c.cfg.ConnectTimeout)
	defer cancel()
	order, err := d.resolve(ctx)
	if err != nil {
		return nil, d.dialFailed(parent, err)
	}
	var errs []error
	for i, a := range order {
		nc, err := d.connect(ctx, a, len(order)-i)
		if err == nil {
			var c *conn
			if c, err = d.secure(parent, nc, a, protocol); err == nil {
				d.connects.Add(1)
				if protocol == protocolHTTP1 && d.hidesHTTP2(parent, c) {
					_ = c.nc.Close()
					return nil, errOnlyHTTP2
				}
				return c, nil
			}
		}
		if errors.Is(err, errOnlyHTTP2) {
			return nil, err
		}
		errs = append(errs, err)
		if parent.Err() != nil || ctx.Err() != nil {
			break
		}
		if !errors.Is(err, egress.ErrBlocked) {
			d.hurt(a)
			if i+1 < len(order) && !d.retry() {
				break
			}
		}
	}
	return nil, d.dialFailed(parent, errors.Join(errs...))
}

func (d *destination) dialFailed(ctx context.Context, err error) error {
	d.connectsFailed.Add(1)
	switch deadline, ok := ctx.Deadline(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case ok && !time.Now().Before(deadline): // the socket may learn of it before the context does
		return context.DeadlineExceeded
	case errors.Is(err, ErrIdentity):
		return err
	}
	return fmt.Errorf("%w (connect: %w)", ErrUnavailable, err)
}

// resolve returns the addresses of the destination in the order in which to try them.
func (d *destination) resolve(ctx context.Context) ([]*address, error) {
	ips := d.literal
	if ips == nil {
		var err error
		if ips, err = d.c.cfg.Resolve(ctx, d.host); err != nil {
			return nil, err
		}
		if len(ips) == 0 {
			return nil, errors.New("the name has no address")
		}
	}
	return d.addresses.update(ips[:min(len(ips), maxAddresses)], d.c.cfg.Now()), nil
}

// connect gives one of so many addresses its share of the time that is left.
func (d *destination) connect(ctx context.Context, a *address, of int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && of > 1 {
		const least = 200 * time.Millisecond
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, max(least, time.Until(deadline)/time.Duration(of)))
		defer cancel()
	}
	return d.c.cfg.Dial(ctx, "tcp", netip.AddrPortFrom(a.ip, d.port).String())
}

// secure does the TLS handshake, if there is to be one: before it has shown who the server is, nothing is sent.
func (d *destination) secure(ctx context.Context, nc net.Conn, a *address, protocol string) (*conn, error) {
	if !d.https {
		return newConn(nc, nc, a, d.c.cfg.Now()), nil
	}
	cfg, err := d.tlsConfig(protocol)
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("%w (%w)", ErrIdentity, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.c.cfg.HandshakeTimeout)
	defer cancel()
	tc := tls.Client(nc, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		_ = nc.Close()
		return nil, handshakeFailure(ctx, err)
	}
	if got := tc.ConnectionState().NegotiatedProtocol; got != protocol && (got != "" || protocol != protocolHTTP1) {
		_ = nc.Close()
		return nil, fmt.Errorf("%w (it chose the protocol %q)", ErrIdentity, got)
	}
	return newConn(tc, nc, a, d.c.cfg.Now()), nil
}

func (d *destination) tlsConfig(protocol string) (*tls.Config, error) {
	cfg := &tls.Config{}
	if d.c.cfg.TLS != nil {
		chosen, err := d.c.cfg.TLS(d.host, d.identity)
		if err != nil {
			return nil, err
		}
		if chosen == nil {
			return nil, errors.New("no TLS configuration")
		}
		cfg = chosen.Clone()
	} else if d.identity != "" {
		return nil, errors.New("this node cannot verify the identity that the server must have")
	}
	cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
	cfg.NextProtos = []string{protocol}
	if cfg.ServerName == "" {
		cfg.ServerName = d.host
	}
	return cfg, nil
}

// hidesHTTP2 finds out what it means when a server names no protocol, once: most do not know how to, but one that speaks
// HTTP/2 only may let a client for HTTP/1.1 in all the same, as crypto/tls does.
func (d *destination) hidesHTTP2(ctx context.Context, c *conn) bool {
	if c.tls == nil || d.named.Load() || c.tls.ConnectionState().NegotiatedProtocol != "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, d.c.cfg.ConnectTimeout)
	defer cancel()
	nc, err := d.connect(ctx, c.addr, 1)
	if err != nil {
		return false
	}
	second, err := d.secure(ctx, nc, c.addr, protocolHTTP2)
	if err == nil {
		_ = second.nc.Close()
		return true
	}
	if errors.Is(err, ErrIdentity) || errors.Is(err, errOnlyHTTP2) {
		d.named.Store(true)
	}
	return false
}

// handshakeFailure tells a server that is not who it should be from one that is not there.
func handshakeFailure(ctx context.Context, err error) error {
	var ne net.Error
	switch {
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout(),
		errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("TLS handshake: %w", err)
	case strings.Contains(err.Error(), "tls: no application protocol"): // crypto/tls does not export its alerts
		return errOnlyHTTP2
	}
	return fmt.Errorf("%w (%w)", ErrIdentity, err)
}
