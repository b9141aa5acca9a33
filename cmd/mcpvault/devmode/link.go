package devmode

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// startLink carries what flows between the control plane and the nodes when that is to be delayed: in the one direction, from
// the control plane, as over a long line. Bytes are as many on the way as come, only late.
func (d *Dev) startLink(bg *background) error {
	if d.cfg.LinkDelay <= 0 {
		return nil
	}
	port := d.plan.linkPort()
	l, err := listen(port)
	if err != nil {
		return portTaken(port, err)
	}
	bg.run(func(ctx context.Context) error { return serveLink(ctx, l, addr(d.plan.cellapiPort()), d.cfg.LinkDelay) })
	return nil
}

// serveLink relays connections until ctx ends, and returns when all of them are closed.
func serveLink(ctx context.Context, l net.Listener, target string, delay time.Duration) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		node, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return problem.New(problem.Internal, "the delayed link has ended", "start again").Because(err)
		}
		wg.Go(func() { carry(ctx, node, target, delay) })
	}
}

func carry(ctx context.Context, node net.Conn, target string, delay time.Duration) {
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		_ = node.Close()
		return
	}
	end := sync.OnceFunc(func() { _, _ = node.Close(), server.Close() })
	defer context.AfterFunc(ctx, end)()
	defer end()
	var wg sync.WaitGroup
	wg.Go(func() {
		defer end()
		_, _ = io.Copy(server, node)
	})
	wg.Go(func() {
		defer end()
		late(node, server, delay)
	})
	wg.Wait()
}

// late copies what comes, each piece after the delay.
func late(to io.Writer, from io.Reader, delay time.Duration) {
	type piece struct {
		due time.Time
		b   []byte
	}
	way := make(chan piece, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var failed error
		for p := range way {
			time.Sleep(time.Until(p.due))
			if failed == nil {
				_, failed = to.Write(p.b)
			}
		}
	}()
	for {
		b := make([]byte, 16<<10)
		n, err := from.Read(b)
		if n > 0 {
			way <- piece{time.Now().Add(delay), b[:n]}
		}
		if err != nil {
			break
		}
	}
	close(way)
	<-done
}
