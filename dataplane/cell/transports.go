package cell

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/sse"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
	"github.com/mcpvault/mcpvault/kit/svid"
)

// transports chooses the transport by the scheme of a server's address.
type transports struct {
	http  *upstream.Client
	sse   *sse.Client
	stdio *stdio.Servers
}

// Do sends one request, once. An address that says who must answer is taken at its word.
func (u *transports) Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error) {
	if address, id := svid.SplitAddress(req.URL); id != "" {
		to := *req
		to.URL, to.Identity = address, id
		req = &to
	}
	switch {
	case strings.HasPrefix(req.URL, stdio.Scheme):
		return u.stdio.Do(ctx, req)
	case strings.HasPrefix(req.URL, sse.Scheme):
		return u.sse.Do(ctx, req)
	}
	return u.http.Do(ctx, req)
}

// sweep ends what nobody has used for long.
func (u *transports) sweep() {
	u.sse.Sweep()
	u.stdio.Sweep()
}

// upstreamTLS is how connections to upstreams are secured: by the host's name and the system's authorities, or by the
// SPIFFE ID that the address names.
func (n *Node) upstreamTLS() (func(host, identity string) (*tls.Config, error), error) {
	servers, err := svid.OpenServers(n.identity, svid.BundleFiles(n.cfg.UpstreamBundles), n.log)
	if err != nil {
		return nil, fmt.Errorf("upstream_bundles: %w", err)
	}
	return func(_, identity string) (*tls.Config, error) {
		if identity == "" {
			return &tls.Config{}, nil // the client sets the version
		}
		return servers.TLS(identity)
	}, nil
}

// close ends the processes first: they take the longest.
func (u *transports) close() error {
	u.stdio.Close()
	u.sse.Close()
	u.http.Close()
	return nil
}
