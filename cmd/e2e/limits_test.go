package e2e_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// One limit for the whole cell, set by the command line: callers of all three nodes together stay within it, and are told
// what it is.
func TestALimitHoldsForTheCellAsAWhole(t *testing.T) {
	d := start(t)
	alice := d.Tokens["alice"]
	if a := call(t, d.MCPURLs[0]+"/demo", alice, "echo", `{"message":"hi"}`); !allowed(a) || a.header.Get("RateLimit") != "" {
		t.Fatalf("in dev nothing is limited at first: %d %s", a.status, a.body)
	}
	must(t, d, 2, "settings", "set", "--rate-limit", "principal=nonsense")
	out, _ := must(t, d, 0, "settings", "set", "--rate-limit", "tool/demo/echo=3600/1h+30", "-o", "json")
	if !strings.Contains(out, "3600/1h+30") {
		t.Fatalf("settings set printed %s", out)
	}
	eventually(t, "all nodes have the limit", func() bool {
		for i := range d.MCPURLs {
			if call(t, d.MCPURLs[i]+"/demo", alice, "echo", `{"message":"hi"}`).header.Get("RateLimit") == "" {
				return false
			}
		}
		return true
	})
	began, passed, refused := time.Now(), 0, 0
	for time.Since(began) < 6*time.Second {
		for i := range d.MCPURLs {
			switch a := call(t, d.MCPURLs[i]+"/demo", alice, "echo", `{"message":"hi"}`); {
			case allowed(a):
				passed++
			case a.status == http.StatusTooManyRequests && a.header.Get("Retry-After") != "" && strings.Contains(a.msg.Error.Message, "3600 per 1h for this tool"):
				refused++
			default:
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
	}
	if most := int(time.Since(began).Seconds()) + 1 + 30 + len(d.MCPURLs); passed > most || refused == 0 {
		t.Errorf("%d let through in %s and %d refused: the bound is %d", passed, time.Since(began), refused, most)
	}
	must(t, d, 0, "settings", "set", "--rate-limit", "tool/demo/echo=default")
	eventually(t, "the limit is gone", func() bool {
		return allowed(call(t, d.MCPURLs[0]+"/demo", alice, "echo", `{"message":"hi"}`))
	})
	resp, err := http.Get("http://" + port(t, d, 10+4) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(b), `mcpvault_ratelimited_total{limit="tool"}`) {
		t.Errorf("the refusals are not in /metrics: %v", err)
	}
}
