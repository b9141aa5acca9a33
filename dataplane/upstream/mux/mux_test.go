package mux_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
	"github.com/mcpvault/mcpvault/dataplane/upstream"
	"github.com/mcpvault/mcpvault/dataplane/upstream/mux"
)

// FuzzReceive: no word of a server's ends the node, reaches a caller that did not ask, or makes the gateway say what is no
// JSON.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"jsonrpc":"2.0","id":1,"result":{}}`))
	f.Add([]byte(`{"jsonrpc":"2.0","id":5,"method":"ping"}`))
	f.Add([]byte(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":2}}`))
	f.Add([]byte(`{"id":1`))
	f.Fuzz(func(t *testing.T, b []byte) {
		sent := make(chan []byte, 4)
		c := mux.New(mux.Config{Send: func(b []byte) error { sent <- b; return nil }})
		framer := mcp.NewFramer(mcp.DefaultLimits())
		body := []byte(`{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"x","_meta":{"progressToken":"tok"}}}`)
		m, _ := framer.Frame(body)
		ctx, cancel := context.WithCancel(t.Context())
		type outcome struct {
			resp *upstream.Response
			err  error
		}
		done := make(chan outcome, 1)
		go func() { resp, err := c.Call(ctx, "s", &m); done <- outcome{resp, err} }()
		if first := <-sent; !json.Valid(first) {
			t.Errorf("sent %q", first)
		}
		c.Receive(b)
		a, refusal := framer.FrameAnswer(b)
		params := a.Raw(a.Params)
		at := mcp.Member(params, "progressToken")
		mine := refusal == nil && (a.Kind == mcp.KindResponse && string(a.ID) == "1" ||
			a.Method == mcp.MethodProgress && at.Present() && string(params[at.Start:at.End]) == "1")
		if !mine {
			cancel()
		}
		o := <-done
		cancel()
		if mine == (o.err != nil) || !mine && !errors.Is(o.err, context.Canceled) {
			t.Fatalf("%q: mine %v, error %v", b, mine, o.err)
		}
		if o.resp != nil {
			if o.resp.Events == nil {
				if got, refusal := framer.FrameAnswer(o.resp.Body); refusal != nil || string(got.ID) != `"mine"` {
					t.Errorf("%q became %q", b, o.resp.Body)
				}
			}
			o.resp.Close()
		}
		c.Close(upstream.ErrBroken)
	})
}
