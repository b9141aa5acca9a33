package controlplane

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot"
)

// Target is what a grant reaches. Targets of the same text are equal.
type Target struct {
	// Server is a name, or "*" for every server.
	Server string
	// Version is the number of the published version that is meant; 0 is whichever is published.
	Version uint32
	// Item is the name of a tool, snapshot.PromptItem, snapshot.ResourceItem, AllTools or AllPrompts; "" is everything.
	Item string
	// Selector picks things of every server by their facts, as Terms has them: "effect=read,label.pci=true"; "" picks all.
	Selector string
}

// Items that stand for all of a kind: what ParseTarget makes of tool:* and prompt:*.
const (
	AllTools   = "*tool/*"
	AllPrompts = "*prompt/*"
)

// Term is one condition of a selector: a fact and the value it must have, or, of a set, contain.
type Term struct {
	Fact, Value string
}

// Facts that selectors name besides hints and labels.
const (
	FactEffect   = "effect"
	FactEndpoint = "endpoint"
	labelPrefix  = "label."
)

// Hints are the annotations of a tool that are facts when the server gives them.
func Hints() []string {
	return []string{"destructiveHint", "idempotentHint", "openWorldHint", "readOnlyHint"}
}

const (
	targetFix   = "write server:NAME, server:NAME/TOOL, server:NAME/prompt:PROMPT, server:NAME/resource:PATTERN, server:NAME@VERSION, server:*, tools:SELECTOR or endpoint:NAME"
	selectorFix = "write tools:readOnlyHint, tools:destructiveHint=false, tools:effect=read or tools:label.KEY=VALUE, or several with commas between"
)

// ParseTarget reads the words of a target:
//
//	server:payments             everything of a server
//	server:payments/refund      a tool; tool:refund says the same
//	server:payments/tool:*      all its tools, and nothing else
//	server:docs/prompt:review   a prompt; prompt:* is all of them
//	server:docs/resource:file:///pub/*   resources whose URI fits
//	server:payments@3           the server, or with /TOOL the tool, while version 3 is the published one
//	server:*                    everything
//	tools:readOnlyHint,label.pci=true    tools of any server with these facts
//	endpoint:crm, endpoint:crm/read      tools of any server that touch the endpoint, or touch it so
func ParseTarget(text string) (Target, error) {
	kind, rest, _ := strings.Cut(text, ":")
	switch kind {
	case "server":
		return parseServer(text, rest)
	case "tools":
		return parseSelector(text, rest)
	case "endpoint":
		if name, pattern, slash := strings.Cut(rest, "/"); IsName(name) && (IsName(pattern) || !slash) {
			return Target{Server: "*", Selector: FactEndpoint + "=" + rest}, nil
		}
		return Target{}, noTarget(text, "write endpoint:NAME or endpoint:NAME/PATTERN, for example endpoint:crm/read")
	}
	return Target{}, noTarget(text, targetFix)
}

func noTarget(text, fix string) error {
	return problem.Newf(problem.Invalid, fix, "%q is no target", text)
}

func parseServer(text, rest string) (Target, error) {
	server, item, slash := strings.Cut(rest, "/")
	name, version, at := strings.Cut(server, "@")
	t := Target{Server: name}
	if name == "" || slash && item == "" {
		return t, noTarget(text, targetFix)
	}
	if at {
		n, err := strconv.ParseUint(version, 10, 31)
		if err != nil || n == 0 || name == "*" {
			return t, noTarget(text, "write the number of a version after the name: server:payments@3")
		}
		t.Version = uint32(n)
	}
	if name == "*" && slash {
		return t, problem.New(problem.Invalid, "a tool of every server cannot be granted",
			"name the server: server:NAME/"+item+"; or pick tools by what they are: tools:readOnlyHint")
	}
	return t.withItem(text, item)
}

func (t Target) withItem(text, item string) (Target, error) {
	t.Item = item
	kind, name, ok := strings.Cut(item, ":")
	switch {
	case !ok:
	case kind == "tool":
		t.Item = name
		if name == "*" {
			t.Item = AllTools
		}
	case kind == "prompt":
		t.Item = snapshot.PromptItem(name)
	case kind == "resource":
		t.Item = snapshot.ResourceItem(name)
		if !isPattern(name) {
			return t, noTarget(text, "write the URI of the resource, with * for any run of characters: server:docs/resource:file:///pub/*")
		}
	}
	if ok && name == "" || snapshot.IsSurface(item) || item != "" && snapshot.CheckName(t.Item) != nil {
		return t, noTarget(text, targetFix)
	}
	return t, nil
}

var scheme = regexp.MustCompile(`^[a-z][a-z0-9+.-]*:`)

// isPattern tells what can match a URI: it has a scheme, or a star in its place, and nothing that no URI has.
func isPattern(p string) bool {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\"<>\\^`{|}#", r) }
	return (scheme.MatchString(p) || strings.HasPrefix(p, "*")) && !strings.ContainsFunc(p, odd)
}

func parseSelector(text, rest string) (Target, error) {
	var terms []Term
	for part := range strings.SplitSeq(rest, ",") {
		term, err := parseTerm(text, part)
		if err != nil {
			return Target{}, err
		}
		terms = append(terms, term)
	}
	slices.SortFunc(terms, func(a, b Term) int { return cmp.Or(cmp.Compare(a.Fact, b.Fact), cmp.Compare(a.Value, b.Value)) })
	words := make([]string, 0, len(terms))
	for i, t := range terms {
		if i > 0 && terms[i-1].Fact == t.Fact {
			return Target{}, problem.Newf(problem.Invalid, "name each fact once", "%q asks for %s twice", text, t.Fact)
		}
		words = append(words, t.Fact+"="+t.Value)
	}
	return Target{Server: "*", Selector: strings.Join(words, ",")}, nil
}

func parseTerm(text, part string) (Term, error) {
	fact, value, given := strings.Cut(part, "=")
	switch {
	case slices.Contains(Hints(), fact):
		if !given {
			value = "true"
		}
		if value == "true" || value == "false" {
			return Term{fact, value}, nil
		}
	case fact == FactEffect:
		if slices.Contains([]string{"read", "write", "destructive"}, value) {
			return Term{fact, value}, nil
		}
	case strings.HasPrefix(fact, labelPrefix):
		if IsName(strings.TrimPrefix(fact, labelPrefix)) && IsName(value) {
			return Term{fact, value}, nil
		}
	}
	return Term{}, noTarget(text, selectorFix)
}

// Terms takes a selector apart.
func (t Target) Terms() []Term {
	var terms []Term
	for word := range strings.SplitSeq(t.Selector, ",") {
		if fact, value, ok := strings.Cut(word, "="); ok {
			terms = append(terms, Term{fact, value})
		}
	}
	return terms
}

// Label is the key of a label that the term asks for.
func (t Term) Label() (key string, ok bool) { return strings.CutPrefix(t.Fact, labelPrefix) }

// String writes the words that ParseTarget reads.
func (t Target) String() string {
	if endpoint, ok := strings.CutPrefix(t.Selector, FactEndpoint+"="); ok {
		return "endpoint:" + endpoint
	}
	if t.Selector != "" {
		return "tools:" + t.Selector
	}
	s := "server:" + t.Server
	if t.Version != 0 {
		s += "@" + strconv.FormatUint(uint64(t.Version), 10)
	}
	if t.Item == "" {
		return s
	}
	if t.Item == AllTools {
		return s + "/tool:*"
	}
	kind, name := snapshot.KindOf(t.Item)
	if kind != snapshot.ItemTool {
		return s + "/" + kind.String() + ":" + name
	}
	// A tool's own name may look like the word for something else.
	for _, word := range []string{"tool:", "prompt:", "resource:"} {
		if strings.HasPrefix(name, word) {
			return s + "/tool:" + name
		}
	}
	return s + "/" + name
}

var plainName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// IsName tells whether s can name an endpoint, a way to use one, a label's key or its value: words that need no quoting in
// a shell, and no comma or equals sign, which separate them.
func IsName(s string) bool { return plainName.MatchString(s) }
