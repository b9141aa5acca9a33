package settings

import (
	"cmp"
	"net/url"
	"slices"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// What holds where a tenant has decided nothing.
const (
	defaultResults      = "strip"
	defaultQuestions    = "block"
	defaultChangedTools = "refuse"
)

func mergeGuards(g controlplane.Guards, req *adminv1.GuardsChange) (controlplane.Guards, error) {
	if req == nil {
		return g, nil
	}
	for _, w := range []struct {
		now   *string
		given *string
	}{{&g.Results, req.Results}, {&g.Questions, req.Questions}, {&g.ChangedTools, req.ChangedTools}} {
		if w.given != nil {
			*w.now = strings.TrimPrefix(*w.given, "default")
		}
	}
	if req.CheckArguments != nil {
		g.CheckArguments = req.GetCheckArguments()
	}
	if req.GetForbidden() != nil {
		g.Forbidden = slices.Sorted(slices.Values(req.GetForbidden().GetRequests()))
	}
	if req.GetOrigins() != nil {
		g.Origins = slices.Sorted(slices.Values(req.GetOrigins().GetOrigins()))
	}
	for _, origin := range g.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || u.Scheme+"://"+u.Host != origin {
			return g, problem.Newf(problem.Invalid, "write it like https://login.example.com", "%q is no origin", origin)
		}
	}
	return g, nil
}

func showGuards(g controlplane.Guards) *adminv1.Guards {
	return &adminv1.Guards{
		Results: cmp.Or(g.Results, defaultResults), Questions: cmp.Or(g.Questions, defaultQuestions), Origins: g.Origins, Forbidden: g.Forbidden,
		CheckArguments: g.CheckArguments, ChangedTools: cmp.Or(g.ChangedTools, defaultChangedTools),
	}
}

func describeGuards(g controlplane.Guards) map[string]any {
	return map[string]any{
		"results": g.Results, "questions": g.Questions, "origins": g.Origins, "forbidden": g.Forbidden,
		"check_arguments": g.CheckArguments, "changed_tools": g.ChangedTools,
	}
}
