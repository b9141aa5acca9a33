package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/contexts"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/mcpclient"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func (a *App) mcpCommand() *cobra.Command {
	return a.Group("mcp", "Calls tools through a cell, as any MCP client does.", "  mcpvault mcp call demo/echo message=hi --as alice",
		a.mcpListCommand(), a.mcpCallCommand())
}

// pickNodes chooses one of the nodes: by its place (2 or n2), by its address, or all for "".
func pickNodes(nodes []string, which string) ([]string, error) {
	if len(nodes) == 0 {
		return nil, problem.New(problem.Invalid, "the context names no cell", "log in again with --mcp-url URL")
	}
	if which == "" {
		return nodes, nil
	}
	if i, err := strconv.Atoi(strings.TrimPrefix(which, "n")); err == nil && i >= 1 && i <= len(nodes) {
		return nodes[i-1 : i], nil
	}
	for _, n := range nodes {
		if u, err := url.Parse(n); n == which || (err == nil && u.Host == which) {
			return []string{n}, nil
		}
	}
	return nil, problem.Newf(problem.NotFound, fmt.Sprintf("use n1 to n%d", len(nodes)), "the context has no node %q", which)
}

func (a *App) callerFlags(cmd *cobra.Command, node, era *string) {
	cmd.Flags().StringVar(node, "node", "", "only this node: n1, n2, … in the context's order, or its address; the nearest that serves when not given")
	cmd.Flags().StringVar(era, "protocol", "", "MCP revision to speak: "+mcpclient.Modern+" or "+mcpclient.Legacy+"; found out when not given")
}

func checkEra(era string) error {
	if era != "" && era != mcpclient.Modern && era != mcpclient.Legacy {
		return problem.Newf(problem.Invalid, "use "+mcpclient.Modern+" or "+mcpclient.Legacy, "revision %q is not spoken", era)
	}
	return nil
}

type listedTool struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Raw         json.RawMessage `json:"tool"`
}

func (a *App) mcpListCommand() *cobra.Command {
	var node, era string
	cmd := a.Leaf("list [SERVER]", "Lists the tools that a person may call: of one server, or of all (as server__tool).",
		"  mcpvault mcp list --as alice\n  mcpvault mcp list payments --as alice -o json", Args("[SERVER]"),
		func(ctx context.Context, args []string) error {
			if err := checkEra(era); err != nil {
				return err
			}
			c, err := a.newCaller(node, era)
			if err != nil {
				return err
			}
			server := strings.Join(args, "")
			var tools []mcpclient.Tool
			var answer *mcpclient.Answer
			err = c.do(ctx, server, func(ctx context.Context, client *mcpclient.Client) error {
				tools, answer, err = client.ListTools(ctx)
				return err
			})
			if err != nil {
				return err
			}
			if answer.Error != nil {
				return a.answerProblem(answer)
			}
			if tools == nil && answer.Result == nil {
				return mcpclient.StatusProblem(answer.Status)
			}
			return PrintList(a, output.Map(tools, func(t mcpclient.Tool) listedTool { return listedTool{t.Name, t.Description, t.Raw} }),
				output.Column[listedTool]{Head: "TOOL", Cell: func(t listedTool) string { return t.Name }},
				output.Column[listedTool]{Head: "DESCRIPTION", Cell: func(t listedTool) string { return t.Description }})
		})
	a.callerFlags(cmd, &node, &era)
	return cmd
}

func (a *App) mcpCallCommand() *cobra.Command {
	var node, era, raw string
	cmd := a.Leaf("call SERVER/TOOL [KEY=VALUE...]",
		"Calls a tool. Exit status 0 when it was allowed and did its work, 1 when the tool failed, 4 when the vault denied it.",
		`  mcpvault mcp call demo/echo message=hi --as alice
  mcpvault mcp call payments/refund --as alice amount=5 --node n2
  mcpvault mcp call demo/slow --args '{"steps":5}' -o json`, Args("SERVER/TOOL", "[KEY=VALUE...]"),
		func(ctx context.Context, args []string) error {
			if err := checkEra(era); err != nil {
				return err
			}
			server, tool, err := mcpclient.SplitTool(args[0])
			if err != nil {
				return err
			}
			if raw != "" && (len(args) > 1 || !isObject(raw)) {
				return problem.New(problem.Invalid, "--args takes one JSON object, in place of KEY=VALUE", `for example: --args '{"amount":5}'`)
			}
			c, err := a.newCaller(node, era)
			if err != nil {
				return err
			}
			c.notify = a.showProgress
			var answer *mcpclient.Answer
			err = c.do(ctx, server, func(ctx context.Context, client *mcpclient.Client) error {
				answer, err = callOnce(ctx, client, tool, args[1:], raw)
				return err
			})
			if err != nil {
				return err
			}
			return a.printAnswer(answer, explainWords(c, args, raw))
		})
	cmd.Flags().StringVar(&raw, "args", "", "the arguments as one JSON object")
	a.callerFlags(cmd, &node, &era)
	return cmd
}

func isObject(s string) bool {
	var v map[string]json.RawMessage
	return json.Unmarshal([]byte(s), &v) == nil && v != nil
}

// explainWords is what an administrator types to see why the call was decided as it was.
func explainWords(c *caller, args []string, raw string) string {
	who := c.who
	if who == "" {
		who = contexts.ReadToken(c.token).Subject
	}
	if who == "" {
		return ""
	}
	words := "mcpvault access explain " + who
	for _, a := range args {
		words += " " + shellWord(a)
	}
	if raw != "" {
		words += " --args " + shellWord(raw)
	}
	return words
}

// shellWord writes a word as a shell takes it.
func shellWord(s string) string {
	if s != "" && !strings.ContainsAny(s, " \t\n\"'\\$`&|;<>()[]{}*?!#~") {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// callOnce asks for the tool's schema and calls it. A tool that is not shown to the caller is called all the same: it is
// for the cell to say no.
func callOnce(ctx context.Context, client *mcpclient.Client, tool string, words []string, raw string) (*mcpclient.Answer, error) {
	tools, _, err := client.ListTools(ctx)
	if err != nil {
		return nil, err
	}
	var schema json.RawMessage
	for _, t := range tools {
		if t.Name == tool {
			schema = t.InputSchema
		}
	}
	arguments := json.RawMessage(raw)
	if raw == "" {
		if arguments, err = mcpclient.Arguments(words, schema); err != nil {
			return nil, err
		}
	}
	return client.CallTool(ctx, tool, arguments, schema)
}

func (a *App) showProgress(method string, params json.RawMessage) {
	if method != "notifications/progress" {
		return
	}
	var p struct {
		Progress float64 `json:"progress"`
		Total    float64 `json:"total"`
		Message  string  `json:"message"`
	}
	if json.Unmarshal(params, &p) != nil {
		return
	}
	line := fmt.Sprintf("progress %g", p.Progress)
	if p.Total > 0 {
		line += fmt.Sprintf("/%g", p.Total)
	}
	a.Notef("%s", strings.TrimSpace(line+" "+output.Clean(p.Message)))
}

// answered is a call in JSON.
type answered struct {
	Result   json.RawMessage     `json:"result,omitempty"`
	Error    *mcpclient.RPCError `json:"error,omitempty"`
	Decision decided             `json:"decision"`
}

type decided struct {
	ID     string `json:"id,omitempty"`
	Effect string `json:"effect"`
	Reason string `json:"reason,omitempty"`
	// MS is what the decision took, where the cell tells.
	MS       float64 `json:"ms,omitempty"`
	Snapshot string  `json:"snapshot,omitempty"`
	Cell     string  `json:"cell,omitempty"`
}

// printAnswer prints what a call came to and returns its exit status.
func (a *App) printAnswer(answer *mcpclient.Answer, explain string) error {
	if answer.Result == nil && answer.Error == nil {
		return mcpclient.StatusProblem(answer.Status)
	}
	reason, hint, denied := answer.Denied()
	d := decided{
		ID: answer.Decision.ID, Effect: "allow", Reason: reason, MS: answer.Decision.Millis,
		Snapshot: answer.Decision.Snapshot, Cell: answer.Decision.Cell,
	}
	if denied {
		d.Effect = "deny"
	}
	if a.format == output.JSON || a.format == output.YAML {
		if err := output.Value(a.cfg.Stdout, a.format, answered{answer.Result, answer.Error, d}); err != nil {
			return err
		}
	} else if answer.Error == nil && !denied {
		if err := a.printResult(answer); err != nil {
			return err
		}
	}
	if d.ID != "" {
		took := ""
		if d.MS > 0 {
			took = fmt.Sprintf(" %.2g ms", d.MS)
		}
		a.Notef("decision %s %s%s snapshot=%s cell=%s", d.Effect, d.ID, took, output.OrDash(d.Snapshot), output.OrDash(d.Cell))
	}
	switch {
	case denied:
		a.sayDenied(answer, hint, explain)
		return Exit(problem.Denied.Exit())
	case answer.Error != nil:
		return a.answerProblem(answer)
	case answer.ToolError():
		return Exit(problem.Internal.Exit())
	}
	return nil
}

func (a *App) sayDenied(answer *mcpclient.Answer, hint, explain string) {
	what := answer.Text()
	if answer.Error != nil {
		what = answer.Error.Message
	}
	a.tell("denied: %s\n", output.Clean(what))
	if hint != "" {
		a.tell("hint: %s\n", output.Clean(hint))
	}
	if explain != "" {
		a.tell("why: %s\n", output.Clean(explain))
	}
}

// printResult prints the text of a result, and blocks that are no text as JSON.
func (a *App) printResult(answer *mcpclient.Answer) error {
	var result struct {
		Content    []json.RawMessage `json:"content"`
		Structured json.RawMessage   `json:"structuredContent"`
	}
	if err := json.Unmarshal(answer.Result, &result); err != nil {
		return fmt.Errorf("read the result: %w", err)
	}
	for _, raw := range result.Content {
		var block struct {
			Type string `json:"type"`
			Text string `json:"text"`
		}
		line := string(raw)
		if json.Unmarshal(raw, &block) == nil && block.Type == "text" {
			line = block.Text
		}
		if _, err := fmt.Fprintln(a.cfg.Stdout, output.CleanText(line)); err != nil {
			return err
		}
	}
	if len(result.Content) == 0 && len(result.Structured) > 0 {
		_, err := fmt.Fprintln(a.cfg.Stdout, output.Clean(string(result.Structured)))
		return err
	}
	return nil
}

// answerProblem words a JSON-RPC error.
func (a *App) answerProblem(answer *mcpclient.Answer) error {
	code, fix := problem.Internal, "look with `mcpvault audit tail`"
	if answer.Decision.ID != "" {
		fix = "look with `mcpvault audit get " + answer.Decision.ID + "`"
	}
	if _, _, denied := answer.Denied(); denied {
		code = problem.Denied
	}
	return problem.Newf(code, fix, "%s (code %d)", answer.Error.Message, answer.Error.Code)
}
