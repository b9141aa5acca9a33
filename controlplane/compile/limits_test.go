package compile

import (
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
)

func TestLimitsAreCarriedByScopeNameAndItem(t *testing.T) {
	t.Parallel()
	rates, maxCalls := rateLimits(controlplane.RateLimits{MaxCalls: 64, Rates: map[string]controlplane.RateLimit{
		"tool/pay/refund/all": {Requests: 10, Per: time.Minute, Burst: 3},
		"principal":           {Requests: 100, Per: time.Second, Burst: 200},
		"principal/a/b":       {Requests: 1, Per: time.Second, Burst: 1},
		"server/pay":          {Requests: 5, Per: time.Hour, Burst: 5},
	}})
	var got []string
	for _, r := range rates {
		got = append(got, r.GetScope()+" "+r.GetName()+" "+r.GetItem())
	}
	want := []string{"principal  ", "principal a/b ", "server pay ", "tool pay refund/all"}
	if len(got) != len(want) || maxCalls != 64 {
		t.Fatalf("got %q, %d calls", got, maxCalls)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("limit %d is %q, want %q", i, got[i], want[i])
		}
	}
	if r := rates[3]; r.GetRequests() != 10 || r.GetPerMs() != 60_000 || r.GetBurst() != 3 {
		t.Errorf("got %v", r)
	}
	if rates, _ := rateLimits(controlplane.RateLimits{}); len(rates) != 0 {
		t.Errorf("limits from nowhere: %v", rates)
	}
}
