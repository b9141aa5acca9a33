package load_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/load"
)

// A load that counts a stranger's answer as right proves nothing about the server under it.
func TestEachKindOfBadAnswerIsCounted(t *testing.T) {
	t.Parallel()
	const result = `{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":%s}]}}`
	for name, c := range map[string]struct {
		answer        func(id, payload string) string
		wrong, failed bool
	}{
		"right":                   {answer: func(id, p string) string { return fmt.Sprintf(result, id, p) }},
		"another call's id":       {answer: func(_, p string) string { return fmt.Sprintf(result, `"9-9999"`, p) }, wrong: true},
		"another call's payload":  {answer: func(id, _ string) string { return fmt.Sprintf(result, id, `"somebody else's"`) }, wrong: true},
		"a refusal as an error":   {answer: func(id, _ string) string { return `{"jsonrpc":"2.0","id":` + id + `,"error":{"code":-32000}}` }, failed: true},
		"a refusal as a result":   {answer: func(id, _ string) string { return `{"jsonrpc":"2.0","id":` + id + `,"result":{"isError":true}}` }, failed: true},
		"no answer, but a status": {answer: func(string, string) string { return "" }, failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, rest, _ := strings.Cut(string(body), `"id":`)
				id, _, _ := strings.Cut(rest, ",")
				_, rest, _ = strings.Cut(rest, `"message":`)
				payload, _, _ := strings.Cut(rest, "}")
				b := c.answer(id, payload)
				if b == "" {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
				_, _ = io.WriteString(w, b)
			}))
			defer srv.Close()
			r, err := load.Run(t.Context(), load.Target{URL: srv.URL + "/mcp", Tool: "echo"}, 1, 20*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if r.Wrong > 0 != c.wrong || r.Failed > 0 != c.failed || (r.FirstError != nil) != (c.wrong || c.failed) {
				t.Errorf("%d calls: %d wrong, %d failed, first %v", r.Calls, r.Wrong, r.Failed, r.FirstError)
			}
		})
	}
}
