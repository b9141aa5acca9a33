package manage

import (
	"testing"
	"time"
)

func TestRateLimitsAreReadAsTheyAreShown(t *testing.T) {
	t.Parallel()
	got, err := parseRates([]string{"principal=100/1s+200", "tool/pay/refund=10/1m", "tenant=default"})
	if err != nil {
		t.Fatal(err)
	}
	if r := got["principal"]; r.GetRequests() != 100 || r.GetPer().AsDuration() != time.Second || r.GetBurst() != 200 {
		t.Errorf("principal: %v", r)
	}
	if r := got["tool/pay/refund"]; r.GetRequests() != 10 || r.GetPer().AsDuration() != time.Minute || r.GetBurst() != 0 {
		t.Errorf("tool: %v", r)
	}
	if r, there := got["tenant"]; !there || r.GetRequests() != 0 {
		t.Errorf("default must take the limit away: %v", r)
	}
	if shown := viewRates(got)["principal"]; shown != "100/1s+200" {
		t.Errorf("shown as %q", shown)
	}
	for _, bad := range []string{"", "principal", "=1/1s", "principal=1", "principal=0/1s", "principal=-1/1s", "principal=1/x", "principal=1/1s+0", "principal=1/1s+x"} {
		if _, err := parseRates([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	for _, bad := range []string{"0", "-1", "x", "99999999999"} {
		if _, err := parseMaxCalls(bad); err == nil {
			t.Errorf("--max-calls %q was taken", bad)
		}
	}
	if n, err := parseMaxCalls("default"); err != nil || n == nil || *n != 0 {
		t.Error("default goes back to the node's own bound", n, err)
	}
}
