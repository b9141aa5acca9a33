package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
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

func (a *App) doctorCommand() *cobra.Command {
	return a.Leaf("doctor", "Looks at everything between here and a call, and says what to do about what is wrong. Exit status 1 when something failed.",
		"  mcpvault doctor\n  mcpvault doctor -o json", Args(),
		func(ctx context.Context, _ []string) error {
			found := a.examine(ctx)
			err := PrintList(a, found,
				output.Column[finding]{Head: "CHECK", Cell: func(f finding) string { return f.Check }},
				output.Column[finding]{Head: "STATE", Cell: func(f finding) string { return f.State }},
				output.Column[finding]{Head: "DETAIL", Cell: func(f finding) string { return f.Detail }},
				output.Column[finding]{Head: "WHAT TO DO", Cell: func(f finding) string { return f.Fix }})
			if err != nil {
				return err
			}
			for _, f := range found {
				if f.State == "failed" {
					return Exit(problem.Internal.Exit())
				}
			}
			return nil
		})
}

func (a *App) examine(ctx context.Context) []finding {
	path, file, err := a.doctorContext()
	if err != nil {
		return []finding{failed("context", err)}
	}
	c, err := a.context()
	if err != nil {
		return []finding{failed("context", err)}
	}
	name := a.flags.context
	if name == "" {
		name = file.Current
	}
	found := []finding{ok("context", fmt.Sprintf("%s in %s", name, path))}
	if !filePrivate(path) {
		found = append(found, finding{"context file", "warning", "others on this machine can read the tokens in it", "chmod 600 " + path})
	}
	found = append(found, checkTokens(c, time.Now())...)
	found = append(found, a.checkControlPlane(ctx)...)
	return append(found, a.checkNodes(ctx, c)...)
}

// checkTokens looks at when tokens end. What they say is not verified here: the servers do.
func checkTokens(c *contexts.Context, now time.Time) []finding {
	var found []finding
	for _, who := range sortedKeys(c.Tokens) {
		end, known := expiry(c.Tokens[who])
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

func expiry(token string) (time.Time, bool) {
	end := claims(token).Expires
	return time.Unix(end, 0), end > 0
}

func (a *App) checkControlPlane(ctx context.Context) []finding {
	client, _, err := a.admin()
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
func (a *App) checkNodes(ctx context.Context, c *contexts.Context) []finding {
	found := make([]finding, len(c.MCPURLs))
	base, err := admin.HTTPTransport(c.CAFile)
	if err != nil {
		return []finding{failed("cell", err)}
	}
	token := a.probeToken(c)
	var wg sync.WaitGroup
	for i, url := range c.MCPURLs {
		wg.Go(func() {
			found[i] = checkNode(ctx, fmt.Sprintf("node n%d", i+1), mcpclient.Config{
				URL: url, Host: hostFor(c, token), Token: token, HTTP: mcpclient.NewHTTP(base), ClientVersion: a.cfg.Version,
			})
		})
	}
	wg.Wait()
	return found
}

// probeToken is the token to look with: an honest question is better than a refusal, which alarms somebody.
func (a *App) probeToken(c *contexts.Context) string {
	for _, who := range append([]string{a.flags.as, c.As}, sortedKeys(c.Tokens)...) {
		end, known := expiry(c.Tokens[who])
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
		return failed(name, statusProblem(answer.Status))
	}
	return ok(name, fmt.Sprintf("%s shows %d tools, snapshot %s, %s", cfg.URL, len(tools), orDash(answer.Decision.Snapshot), answer.Took.Round(time.Millisecond)))
}
