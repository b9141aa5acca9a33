package demoserver_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demoserver"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
)

type client struct {
	*mcpclient.Client
	t        *testing.T
	progress []string
}

// start serves s on a real socket and returns a client of the era; both end with the test.
func start(t *testing.T, s *demoserver.Server, era string) *client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, l) }()
	c := &client{t: t}
	c.Client = mcpclient.New(mcpclient.Config{
		URL: "http://" + l.Addr().String() + demoserver.Path, Era: era,
		HTTP: mcpclient.NewHTTP(&http.Transport{}),
		Notify: func(method string, params json.RawMessage) {
			var p struct {
				Message string `json:"message"`
			}
			if method == "notifications/progress" && json.Unmarshal(params, &p) == nil {
				c.progress = append(c.progress, p.Message)
			}
		},
	})
	t.Cleanup(func() {
		_ = c.Close(context.Background())
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *client) call(tool, args string) *mcpclient.Answer {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a, err := c.CallTool(ctx, tool, json.RawMessage(args), nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func eras(t *testing.T, f func(t *testing.T, era string)) {
	for _, era := range []string{mcpclient.Modern, mcpclient.Legacy} {
		t.Run(era, func(t *testing.T) {
			t.Parallel()
			f(t, era)
		})
	}
}

func TestToolsAreListedWithTheHintsThatAnApproverNeeds(t *testing.T) {
	t.Parallel()
	eras(t, func(t *testing.T, era string) {
		want := map[string]bool{"echo": true, "slow": true, "leak": true, "refund": false, "balance": true}
		for _, s := range []*demoserver.Server{demoserver.Demo(), demoserver.Payments()} {
			tools, a, err := start(t, s, era).ListTools(t.Context())
			if err != nil || a.Error != nil || a.Protocol != era {
				t.Fatal(err, a)
			}
			for _, tool := range tools {
				var hints struct {
					Annotations struct {
						ReadOnlyHint, DestructiveHint bool
					}
				}
				readOnly, known := want[tool.Name]
				if err := json.Unmarshal(tool.Raw, &hints); err != nil || !known ||
					hints.Annotations.ReadOnlyHint != readOnly || hints.Annotations.DestructiveHint == readOnly {
					t.Errorf("%s: %s %v", tool.Name, tool.Raw, err)
				}
				delete(want, tool.Name)
			}
		}
		if len(want) > 0 {
			t.Errorf("missing %v", want)
		}
	})
}

func TestSlowReportsEveryStepBeforeItsAnswer(t *testing.T) {
	t.Parallel()
	eras(t, func(t *testing.T, era string) {
		for range 5 {
			c := start(t, demoserver.Demo(), era)
			a := c.call("slow", `{"steps":4,"seconds":0.04}`)
			if got := strings.Join(c.progress, ","); got != "step 1 of 4,step 2 of 4,step 3 of 4,step 4 of 4" || a.Text() != "done after 4 steps" {
				t.Fatalf("got %q, %q", got, a.Text())
			}
		}
	})
}

func TestToolsDoWhatTheySay(t *testing.T) {
	t.Parallel()
	eras(t, func(t *testing.T, era string) {
		demo, pay := start(t, demoserver.Demo(), era), start(t, demoserver.Payments(), era)
		if got := demo.call("echo", `{"message":"hi <there>"}`).Text(); got != "hi <there>" {
			t.Error(got)
		}
		if got := demo.call("leak", "").Text(); !strings.Contains(got, "AKIA") {
			t.Error(got)
		}
		if got := pay.call("refund", `{"amount":5,"order":"A-1"}`).Text(); got != "refund 1: 5.00 EUR paid back for order A-1" {
			t.Error(got)
		}
		if got := pay.call("balance", `{}`).Text(); got != "main holds 9995.00 EUR" {
			t.Error(got)
		}
		for _, a := range []*mcpclient.Answer{demo.call("echo", `{}`), pay.call("refund", `{"amount":-1}`), pay.call("balance", `{"account":"x"}`)} {
			if !a.ToolError() {
				t.Errorf("%s", a.Result)
			}
			if _, _, denied := a.Denied(); denied {
				t.Error("a tool's own error looks like a denial")
			}
		}
	})
}
