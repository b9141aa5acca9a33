package demoserver_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demoserver"
)

func TestAServerInTroubleAnswersLateOrNotUntilItIsOver(t *testing.T) {
	t.Parallel()
	s := demoserver.Demo()
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	ask := func(within time.Duration) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+demoserver.Path, strings.NewReader(
			`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json, text/event-stream")
		began := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		return time.Since(began), err
	}
	const long, slow = 10 * time.Second, 100 * time.Millisecond
	s.SetTrouble(demoserver.Trouble{Slow: slow})
	if took, err := ask(long); err != nil || took < slow {
		t.Errorf("a slow server answered after %s, %v", took, err)
	}
	s.SetTrouble(demoserver.Trouble{Hang: true})
	if _, err := ask(slow); err == nil {
		t.Error("a server that hangs answered")
	}
	over := time.AfterFunc(slow, func() { s.SetTrouble(demoserver.Trouble{}) })
	defer over.Stop()
	if _, err := ask(long); err != nil {
		t.Errorf("a request that hung did not go on when the trouble was over: %v", err)
	}
}
