package policy

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	cedar "github.com/cedar-policy/cedar-go"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"

	"github.com/mcpvault/mcpvault/controlplane/policy/syntax"
	"github.com/mcpvault/mcpvault/snapshot"
)

// The bounds of one document.
const (
	MaxDocument = 256 << 10 // bytes
	MaxPolicies = 500
)

// Document is a text of Cedar policies.
type Document struct {
	Name     string
	Policies []*Policy
}

// Policy is one statement of a document.
type Policy struct {
	// ID is what its annotation @id says, else policy1, policy2 and so on, in the order of the text.
	ID   string
	Deny bool
	// Line is where it begins.
	Line int

	document string
	ast      *xast.Policy
	text     string
	start    syntax.Place
}

// GrantID is the name under which a policy of a document is enforced and explained.
func GrantID(document, id string) string { return "policy:" + document + "/" + id }

// Parse reads a document. The error is a *Refusal.
func Parse(name, text string) (*Document, error) {
	switch {
	case len(text) > MaxDocument:
		return nil, refuse(syntax.Place{}, "make several documents of it", "the text is %d bytes long; at most %d are accepted", len(text), MaxDocument)
	case syntax.Deepest(text) > maxDepth+2:
		return nil, refuse(syntax.Place{}, "split the policy into several", "a policy nests deeper than %d levels", maxDepth)
	}
	if at, r, ok := syntax.Invisible(text); ok {
		return nil, refuse(at, fmt.Sprintf(`in a string, write \u{%x}; leave it away elsewhere`, r), "the character U+%04X cannot be seen", r)
	}
	list, err := cedar.NewPolicyListFromBytes(name, []byte(text))
	if err != nil {
		return nil, documentSyntax(err)
	}
	switch {
	case len(list) == 0:
		return nil, refuse(syntax.Place{}, `write something like permit (principal in Role::"analyst", action == Action::"call", resource in Server::"payments");`, "the text has no policy")
	case len(list) > MaxPolicies:
		return nil, refuse(syntax.Place{}, "make several documents of it", "the text has %d policies; at most %d are accepted", len(list), MaxPolicies)
	}
	d := &Document{Name: name}
	seen := map[string]int{}
	for i, p := range list {
		end := len(text)
		if i+1 < len(list) {
			end = list[i+1].Position().Offset
		}
		pos := p.Position()
		out := &Policy{
			ID: "policy" + strconv.Itoa(i+1), Deny: p.Effect() == cedar.Forbid, Line: pos.Line, document: name,
			ast: (*xast.Policy)(p.AST()), text: text[pos.Offset:end], start: syntax.Place{Line: pos.Line, Column: pos.Column},
		}
		if id, ok := p.Annotations()["id"]; ok {
			out.ID = string(id)
		}
		if err := snapshot.CheckName(GrantID(name, out.ID)); err != nil || out.ID == "" {
			return nil, refuse(out.start, `write @id("a-short-name")`, "@id cannot be %s", quote(out.ID))
		}
		if before, ok := seen[out.ID]; ok {
			return nil, refuse(out.start, "give each policy a name of its own", "@id %s is there twice: line %d has it too", quote(out.ID), before)
		}
		seen[out.ID] = pos.Line
		d.Policies = append(d.Policies, out)
	}
	return d, nil
}

// Format writes a document in the one form that Cedar has for it. Comments are lost: a text with comments is refused.
func Format(text string) (string, error) {
	if at, ok := syntax.Comment(text); ok {
		return "", refuse(at, `write @description("...") before the policy instead`, "a comment would be lost")
	}
	if _, err := Parse("format", text); err != nil {
		return "", err
	}
	list, err := cedar.NewPolicyListFromBytes("format", []byte(text))
	if err != nil {
		return "", documentSyntax(err)
	}
	var b bytes.Buffer
	for i, p := range list {
		if i > 0 {
			b.WriteString("\n")
		}
		b.Write(bytes.TrimSpace(p.MarshalCedar()))
		b.WriteString("\n")
	}
	return b.String(), nil
}

// documentSyntax says a parser's error with its place.
func documentSyntax(err error) error {
	const fix = "see `mcpvault policy --help` for an example"
	m := cedarPlace.FindStringSubmatch(err.Error())
	if m == nil {
		return refuse(syntax.Place{}, fix, "the text is not valid Cedar: %v", err)
	}
	line, _ := strconv.Atoi(m[1])
	column, _ := strconv.Atoi(m[2])
	return refuse(syntax.Place{Line: line, Column: column}, fix, "unexpected %s: %s", m[3], m[4])
}

// Lower turns a policy into the rule that a cell enforces, and checks it against what there is. The error is a *Refusal; the
// rule is then as much of the scope as could be read, without the conditions.
func (p *Policy) Lower(w *World) (snapshot.Grant, error) {
	l := &lowerer{world: w, deny: p.Deny}
	s := &scope{l: l, find: syntax.NewLocator(p.text, p.start), grant: snapshot.Grant{ID: GrantID(p.document, p.ID), Deny: p.Deny, Subject: snapshot.Everyone, Server: "*"}}
	if err := s.read(p); err != nil {
		return snapshot.Grant{ID: s.grant.ID, Deny: p.Deny, Subject: snapshot.Everyone, Server: "*"}, err
	}
	bodies := make([]*syntax.Expr, 0, len(p.ast.Conditions))
	for _, c := range p.ast.Conditions {
		bodies = append(bodies, s.find.Locate(c.Body))
	}
	if len(s.parts) > 0 {
		s.grant.When = flat(snapshot.OpAnd, s.parts...)
	}
	var first *snapshot.Cond
	for i, tool := range s.tools() {
		l.tool = tool
		var parts []*snapshot.Cond
		for j, body := range bodies {
			c, err := p.body(l, body)
			if err != nil {
				return s.grant, s.everyTool(err)
			}
			if p.ast.Conditions[j].Condition == xast.ConditionUnless {
				c = not(c)
			}
			parts = append(parts, c)
		}
		if i == 0 && len(s.parts)+len(parts) > 0 {
			first = flat(snapshot.OpAnd, append(s.parts, parts...)...)
		}
	}
	if err := fits(first); err != nil {
		return s.grant, p.placed(err)
	}
	s.grant.When = first
	return s.grant, nil
}

// body lowers one condition, and types it against the schema as a whole.
func (p *Policy) body(l *lowerer, body *syntax.Expr) (*snapshot.Cond, error) {
	l.nodes = 0
	c, err := l.condition(body)
	if err == nil {
		err = l.validate(body, known{})
	}
	return c, p.placed(err)
}

// placed gives an error the place of the policy when it has none of its own.
func (p *Policy) placed(err error) error {
	var r *Refusal
	if errors.As(err, &r) && r.Line == 0 {
		return &Refusal{Line: p.start.Line, Column: p.start.Column, What: r.What, Fix: r.Fix}
	}
	return err
}

// Lower gives the rules of a whole document, and every refusal.
func (d *Document) Lower(w *World) ([]snapshot.Grant, []*Refusal) {
	var grants []snapshot.Grant
	var refusals []*Refusal
	for _, p := range d.Policies {
		g, err := p.Lower(w)
		if err == nil {
			grants = append(grants, g)
			continue
		}
		var r *Refusal
		if !errors.As(err, &r) {
			r = &Refusal{Line: p.start.Line, Column: p.start.Column, What: fmt.Sprintf("the policy cannot be read: %v", err), Fix: "write it more simply"}
		}
		refusals = append(refusals, r)
	}
	return grants, refusals
}
