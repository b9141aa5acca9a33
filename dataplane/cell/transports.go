package cell

import (
	"context"
	"strings"

	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/sse"
	"github.com/mcpvault/mcpvault/dataplane/upstream/stdio"
)

// transports chooses the transport by the scheme of a server's address.
type transports struct {
	http  *upstream.Client
	sse   *sse.Client
	stdio *stdio.Servers
}

// Do sends one request, once.
func (u *transports) Do(ctx context.Context, req *upstream.Request) (*upstream.Response, error) {
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

// close ends the processes first: they take the longest.
func (u *transports) close() error {
	u.stdio.Close()
	u.sse.Close()
	u.http.Close()
	return nil
}
