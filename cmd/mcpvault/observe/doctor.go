package observe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// probeTime is how long the doctor waits for one answer.
const probeTime = 3 * time.Second

// finding is one thing that was looked at: ok, warning or failed.
type finding struct {
	Check  string `json:"check"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

func ok(check, detail string) finding { return finding{check, "ok", detail, ""} }

func failed(check string, err error) finding {
	f := finding{check, "failed", err.Error(), ""}
	if p, ok := problem.As(err); ok {
		f.Detail, f.Fix = p.What, p.Fix
	}
	return f
}

func doctorCommand(a *cli.App) *cobra.Command {
	return a.Leaf("doctor", "Looks at everything between here and a call, and says what to do about what is wrong. Exit status 1 when something failed.",
		"  mcpvault doctor\n  mcpvault doctor -o json", cli.Args(),
		func(ctx context.Context, _ []string) error {
			found := examine(ctx, a)
			err := cli.PrintList(a, found,
				output.Column[finding]{Head: "CHECK", Cell: func(f finding) string { return f.Check }},
				output.Column[finding]{Head: "STATE", Cell: func(f finding) string { return f.State }},
				output.Column[finding]{Head: "DETAIL", Cell: func(f finding) string { return f.Detail }},
				output.Column[finding]{Head: "WHAT TO DO", Cell: func(f finding) string { return f.Fix }})
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.State == "failed" {
					return cli.Exit(problem.Internal.Exit())
				}
			}
			return nil
		})
}

func examine(ctx context.Context, a *cli.App) []finding {
	path := a.ContextFile()
	file, err := contexts.Load(path)
	if err != nil {
		return []finding{failed("context", err)}
	}
	c, err := a.Context()
	if err != nil {
		return []finding{failed("context", err)}
	}
	name := a.ContextName()
	if name == "" {
		name = file.Current
	}
	found := []finding{ok("context", fmt.Sprintf("%s in %s", name, path))}
	if !filePrivate(path) {
		found = append(found, finding{"context file", "warning", "others on this machine can read the tokens in it", "chmod 600 " + path})
	}
	found = append(found, checkTokens(c, time.Now())...)
	found = append(found, checkControlPlane(ctx, a)...)
	return append(found, checkNodes(ctx, a, c)...)
}

// checkTokens looks at when tokens end. What they say is not verified here: the servers do.
func checkTokens(c *contexts.Context, now time.Time) []finding {
	var found []finding
	for _, who := range output.Keys(c.Tokens) {
		end, known := contexts.ReadToken(c.Tokens[who]).End()
		switch {
		case !known:
		case now.After(end):
			found = append(found, finding{"token of " + who, "failed", "ended at " + output.Time(end.UnixMilli()), "make a new one: `mcpvault token create " + who + " --save`"})
		case end.Sub(now) < time.Hour:
			found = append(found, finding{"token of " + who, "warning", "ends at " + output.Time(end.UnixMilli()), "make a new one soon: `mcpvault token create " + who + " --save`"})
		default:
			found = append(found, ok("token of "+who, "valid until "+output.Time(end.UnixMilli())))
		}
	}
	return found
}

func checkControlPlane(ctx context.Context, a *cli.App) []finding {
	client, _, err := a.Admin()
	if err != nil {
		return []finding{failed("control plane", err)}
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	resp, err := client.System.CheckHealth(ctx, &adminv1.CheckHealthRequest{})
	if err != nil {
		return []finding{failed("control plane", admin.Problem(err, client.URL))}
	}
	found := []finding{ok("control plane", client.URL+", version "+resp.GetVersion())}
	for _, h := range resp.GetChecks() {
		state := "ok"
		if !h.GetOk() {
			state = "failed"
		}
		found = append(found, finding{"control plane: " + h.GetName(), state, h.GetDetail(), h.GetFix()})
	}
	return found
}

// checkNodes asks every node, at once, what it would show to a caller.
func checkNodes(ctx context.Context, a *cli.App, c *contexts.Context) []finding {
	found := make([]finding, len(c.MCPURLs))
	base, err := admin.HTTPTransport(c.CAFile)
	if err != nil {
		return []finding{failed("cell", err)}
	}
	token := probeToken(a, c)
	var wg sync.WaitGroup
	for i, url := range c.MCPURLs {
		wg.Go(func() {
			found[i] = checkNode(ctx, fmt.Sprintf("node n%d", i+1), mcpclient.Config{
				URL: url, Host: c.HostFor(token), Token: token, HTTP: mcpclient.NewHTTP(base), ClientVersion: a.World().Version,
			})
		})
	}
	wg.Wait()
	return found
}

// probeToken is the token to look with: an honest question is better than a refusal, which alarms somebody.
func probeToken(a *cli.App, c *contexts.Context) string {
	for _, who := range append([]string{a.As(), c.As}, output.Keys(c.Tokens)...) {
		end, known := contexts.ReadToken(c.Tokens[who]).End()
		if t := c.Tokens[who]; t != "" && (!known || time.Now().Before(end)) {
			return t
		}
	}
	return ""
}

func checkNode(ctx context.Context, name string, cfg mcpclient.Config) finding {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	if cfg.Token == "" {
		// Without a token the right answer is a challenge.
		cfg.Era = mcpclient.Modern
	}
	client := mcpclient.New(cfg)
	tools, answer, err := client.ListTools(ctx)
	_ = client.Close(ctx) // The session ends by itself otherwise.
	var p *problem.Problem
	switch {
	case cfg.Token == "" && errors.As(err, &p) && p.Code == problem.Unauthenticated:
		return ok(name, cfg.URL+" asks for a token, as it should")
	case err != nil:
		return failed(name, err)
	case answer.Error != nil:
		return finding{name, "failed", answer.Error.Message, "look with `mcpvault cell status`"}
	case answer.Result == nil && answer.Status != http.StatusOK:
		return failed(name, mcpclient.StatusProblem(answer.Status))
	}
	return ok(name, fmt.Sprintf("%s shows %d tools, snapshot %s, %s", cfg.URL, len(tools), output.OrDash(answer.Decision.Snapshot), answer.Took.Round(time.Millisecond)))
}
