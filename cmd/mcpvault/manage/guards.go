package manage

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// guardsView is what cells do about what servers say and ask.
type guardsView struct {
	HiddenText     string   `json:"hidden_text"`
	Questions      string   `json:"risky_questions"`
	Origins        []string `json:"question_origins"`
	Forbidden      []string `json:"forbidden_questions"`
	CheckArguments bool     `json:"check_arguments"`
	ChangedTools   string   `json:"changed_tools"`
}

func viewGuards(g *adminv1.Guards) guardsView {
	return guardsView{
		HiddenText: g.GetResults(), Questions: g.GetQuestions(), Origins: append([]string{}, g.GetOrigins()...),
		Forbidden: append([]string{}, g.GetForbidden()...), CheckArguments: g.GetCheckArguments(), ChangedTools: g.GetChangedTools(),
	}
}

func guardsColumns() []output.Column[settingsView] {
	return []output.Column[settingsView]{
		{Head: "HIDDEN TEXT", Cell: func(v settingsView) string { return v.Guards.HiddenText }, Wide: true},
		{Head: "RISKY QUESTIONS", Cell: func(v settingsView) string { return v.Guards.Questions }, Wide: true},
		{Head: "QUESTION ORIGINS", Cell: func(v settingsView) string { return strings.Join(v.Guards.Origins, ", ") }, Wide: true},
		{Head: "FORBIDDEN QUESTIONS", Cell: func(v settingsView) string { return strings.Join(v.Guards.Forbidden, ", ") }, Wide: true},
		{Head: "CHECK ARGUMENTS", Cell: func(v settingsView) string {
			if v.Guards.CheckArguments {
				return "yes"
			}
			return "no"
		}, Wide: true},
		{Head: "CHANGED TOOLS", Cell: func(v settingsView) string { return v.Guards.ChangedTools }, Wide: true},
	}
}

// guardsFlags are the flags that change them.
type guardsFlags struct {
	results, questions, changed string
	origins, forbidden          []string
	check                       bool
}

func (g *guardsFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&g.results, "hidden-text", "", "invisible and control characters in what servers say: strip (the default), pass or block")
	f.StringVar(&g.questions, "risky-questions", "", "servers' questions that ask for credentials or lead to another origin: block (the default) or pass")
	f.StringSliceVar(&g.origins, "question-origin", nil, "an origin that questions may lead to besides the server's own, like https://login.example.com; replaces those there were; may be given again; empty for none")
	f.StringSliceVar(&g.forbidden, "forbid-question", nil, "what no server may ask the client for: elicitation, sampling, roots; replaces what there was; may be given again; empty for nothing")
	f.BoolVar(&g.check, "check-arguments", false, "hold every call to the tool's approved input schema")
	f.StringVar(&g.changed, "changed-tools", "", "tools that a server describes otherwise than they were approved: refuse (the default) or serve")
}

// change is what the flags ask for, nil for nothing.
func (g *guardsFlags) change(cmd *cobra.Command) *adminv1.GuardsChange {
	var c adminv1.GuardsChange
	given := false
	on := func(flag string, set func()) {
		if cmd.Flags().Changed(flag) {
			given = true
			set()
		}
	}
	on("hidden-text", func() { c.Results = &g.results })
	on("risky-questions", func() { c.Questions = &g.questions })
	on("question-origin", func() { c.Origins = &adminv1.OriginList{Origins: some(g.origins)} })
	on("forbid-question", func() { c.Forbidden = &adminv1.RequestList{Requests: some(g.forbidden)} })
	on("check-arguments", func() { c.CheckArguments = &g.check })
	on("changed-tools", func() { c.ChangedTools = &g.changed })
	if !given {
		return nil
	}
	return &c
}

// some leaves out what is empty.
func some(words []string) []string {
	var out []string
	for _, w := range words {
		if w != "" {
			out = append(out, w)
		}
	}
	return out
}
