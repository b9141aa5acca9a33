package edge

import (
	"context"
	"crypto/tls"
	"time"

	"github.com/quic-go/quic-go"
)

// ProbeQUIC makes a QUIC connection for HTTP/3 to host:port, closes it, and returns how long the handshake took: what a client
// on this machine would meet. Where UDP is swallowed on the way the error comes when ctx ends.
func ProbeQUIC(ctx context.Context, addr string, conf *tls.Config) (time.Duration, error) {
	conf = conf.Clone()
	conf.NextProtos = []string{"h3"}
	begin := time.Now()
	c, err := quic.DialAddr(ctx, addr, conf, &quic.Config{MaxIdleTimeout: 10 * time.Second})
	if err != nil {
		return 0, err
	}
	took := time.Since(begin)
	const noError = 0x100 // RFC 9114, 8.1
	return took, c.CloseWithError(noError, "")
}
