package controlplane_test

import (
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

func TestTargetsAreReadAndWrittenInOneForm(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]controlplane.Target{
		"server:payments":                       {Server: "payments"},
		"server:*":                              {Server: "*"},
		"server:payments/refund":                {Server: "payments", Item: "refund"},
		"server:payments/a/b":                   {Server: "payments", Item: "a/b"},
		"server:payments@3":                     {Server: "payments", Version: 3},
		"server:payments@3/refund":              {Server: "payments", Version: 3, Item: "refund"},
		"server:payments/tool:*":                {Server: "payments", Item: controlplane.AllTools},
		"server:payments/tool:prompt:x":         {Server: "payments", Item: "prompt:x"},
		"server:docs/prompt:review":             {Server: "docs", Item: snapshot.PromptItem("review")},
		"server:docs/prompt:*":                  {Server: "docs", Item: snapshot.PromptItem("*")},
		"server:docs/resource:file:///pub/*":    {Server: "docs", Item: snapshot.ResourceItem("file:///pub/*")},
		"server:docs/resource:*":                {Server: "docs", Item: snapshot.ResourceItem("*")},
		"tools:readOnlyHint=true":               {Server: "*", Selector: "readOnlyHint=true"},
		"tools:effect=read,label.pci=true":      {Server: "*", Selector: "effect=read,label.pci=true"},
		"endpoint:crm":                          {Server: "*", Selector: "endpoint=crm"},
		"endpoint:crm/read":                     {Server: "*", Selector: "endpoint=crm/read"},
		"server:docs/resource:https://x.y/?q=1": {Server: "docs", Item: snapshot.ResourceItem("https://x.y/?q=1")},
	} {
		got, err := controlplane.ParseTarget(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s: got %+v, written %s, %v", text, got, got.String(), err)
		}
	}
	for text, canonical := range map[string]string{
		"tools:readOnlyHint":                    "tools:readOnlyHint=true",
		"tools:label.pci=true,effect=read":      "tools:effect=read,label.pci=true",
		"server:payments/tool:refund":           "server:payments/refund",
		"tools:openWorldHint=false,effect=read": "tools:effect=read,openWorldHint=false",
	} {
		if got, err := controlplane.ParseTarget(text); err != nil || got.String() != canonical {
			t.Errorf("%s: got %s, %v", text, got.String(), err)
		}
	}
}

func TestATargetThatMeansNothingIsRefusedWithTheWayOut(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"payments": "is no target", "server:": "is no target", "server:payments/": "is no target", "server:*/refund": "tools:readOnlyHint",
		"server:payments@0": "number of a version", "server:payments@x": "number of a version", "server:*@2": "number of a version",
		"server:payments/*other": "is no target", "server:docs/prompt:": "is no target", "server:docs/resource:": "URI of the resource",
		"server:docs/resource:pub": "URI of the resource", "server:docs/resource:file:///a b": "URI of the resource", "server:docs/resource:file:///{id}": "URI of the resource",
		"tools:": "tools:effect=read", "tools:readonlyhint": "tools:effect=read", "tools:readOnlyHint=yes": "tools:effect=read", "tools:effect=all": "tools:effect=read",
		"tools:label.pci": "tools:effect=read", "tools:label.a b=1": "tools:effect=read", "tools:effect=read,effect=write": "twice", "tools:endpoint=crm": "tools:effect=read",
		"endpoint:": "endpoint:crm/read", "endpoint:crm/": "endpoint:crm/read", "endpoint:a=b": "endpoint:crm/read", "team:x": "is no target",
	} {
		if _, err := controlplane.ParseTarget(text); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", text, err)
		}
	}
}

// What is accepted has one form, so that a revoke finds what a grant made, and can stand in a snapshot.
func FuzzParseTarget(f *testing.F) {
	for _, seed := range []string{"server:a@3/prompt:x", "tools:readOnlyHint,label.k=v", "endpoint:a/b", "server:a/tool:*", "server:a/resource:*://x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, err := controlplane.ParseTarget(text)
		if err != nil {
			return
		}
		again, err := controlplane.ParseTarget(first.String())
		if err != nil || again != first {
			t.Errorf("%q became %+v, then %+v (%v)", text, first, again, err)
		}
		if first.Item != "" && snapshot.CheckName(first.Item) != nil {
			t.Errorf("%q names %q", text, first.Item)
		}
	})
}
