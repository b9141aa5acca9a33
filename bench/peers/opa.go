package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"github.com/mcpvault/mcpvault/snapshot"
)

// opa is a prepared query over data in the form that OPA evaluates, with inputs in that form too.
type opa struct {
	query  rego.PreparedEvalQuery
	inputs map[*call]ast.Value
}

func newOPA(ctx context.Context, p *snapshot.Policy, calls []*call) (*opa, error) {
	data, module, err := opaWorld(p)
	if err != nil {
		return nil, err
	}
	o := &opa{inputs: make(map[*call]ast.Value, len(calls))}
	o.query, err = rego.New(
		rego.Query("data.mcpvault.allow"),
		rego.Module("mcpvault.rego", module),
		rego.Store(inmem.NewFromObjectWithOpts(data, inmem.OptReturnASTValuesOnRead(true))),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare OPA: %w", err)
	}
	for _, c := range calls {
		input := map[string]any{"principal": c.principal, "server": c.server, "item": c.item, "args": c.args, "now": c.now, "clock": c.clocks}
		if c.ip != "" {
			input["ip"] = c.ip
		}
		if o.inputs[c], err = ast.InterfaceToValue(input); err != nil {
			return nil, fmt.Errorf("prepare OPA: %w", err)
		}
	}
	return o, nil
}

func (o *opa) allows(c *call) (bool, error) {
	got, err := o.query.Eval(context.Background(), rego.EvalParsedInput(o.inputs[c]))
	if err != nil {
		return false, err
	}
	return got.Allowed(), nil
}

// grants is conditions by node, server and item; "*" is every item.
type grants map[string]map[string]map[string][]any

func (g grants) add(node, server, item, condition string) {
	if g[node] == nil {
		g[node] = map[string]map[string][]any{}
	}
	if g[node][server] == nil {
		g[node][server] = map[string][]any{}
	}
	g[node][server][item] = append(g[node][server][item], condition)
}

// opaWorld is a policy as data and rules; equal conditions are one rule.
func opaWorld(p *snapshot.Policy) (data map[string]any, module string, err error) {
	allows, denies := grants{}, grants{}
	names := map[string]string{}
	var text strings.Builder
	text.WriteString(rules)
	for _, g := range p.Grants {
		condition := always
		if g.When != nil {
			key, err := json.Marshal(g.When)
			if err != nil {
				return nil, "", err
			}
			if condition = names[string(key)]; condition == "" {
				condition = fmt.Sprintf("c%d", len(names))
				names[string(key)] = condition
				rule, err := regoRules(condition, g.When)
				if err != nil {
					return nil, "", fmt.Errorf("grant %s as Rego: %w", g.ID, err)
				}
				text.WriteString(rule)
			}
		}
		to, item := allows, g.Tool
		if g.Deny {
			to = denies
		}
		if item == "" {
			item = "*"
		}
		for _, s := range p.Servers {
			if g.Server == "*" || g.Server == s.Name {
				to.add(string(g.Subject), s.Name, item, condition)
			}
		}
	}
	nodes, off := nodesOf(p)
	return map[string]any{"nodes": nodes, "suspended": off, "allows": plain(allows), "denies": plain(denies)}, text.String(), nil
}

// nodesOf is every principal with all nodes that it belongs to, and those that are switched off.
func nodesOf(p *snapshot.Policy) (nodes, off map[string]any) {
	parents := map[string][]string{}
	for _, n := range p.Nodes {
		for _, up := range n.Parents {
			parents[string(n.Ref)] = append(parents[string(n.Ref)], string(up))
		}
	}
	nodes, off = map[string]any{}, map[string]any{}
	for _, u := range p.Principals {
		direct := []string{string(snapshot.Everyone), "user:" + u.Name}
		for _, r := range u.Nodes {
			direct = append(direct, string(r))
		}
		var all []any
		for _, n := range closure(direct, parents) {
			all = append(all, n)
		}
		nodes[u.Name] = all
		if u.Disabled {
			off[u.Name] = true
		}
	}
	return nodes, off
}

// plain is the form in which OPA's store takes data.
func plain(g grants) map[string]any {
	out := make(map[string]any, len(g))
	for node, servers := range g {
		byServer := make(map[string]any, len(servers))
		for server, items := range servers {
			byItem := make(map[string]any, len(items))
			for item, conditions := range items {
				byItem[item] = conditions
			}
			byServer[server] = byItem
		}
		out[node] = byServer
	}
	return out
}
