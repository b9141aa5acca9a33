package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/mcpvault/mcpvault/bench/authz"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

// call is a question as every engine gets it. Reading the arguments' JSON and looking at the clock is done for the peers
// beforehand; MCPVault reads its raw JSON in the measured time.
type call struct {
	question                authz.Question
	principal, server, item string
	args                    map[string]any // string, bool or int64
	now                     int64
	ip                      string // "" when it is not known
	// clocks are the local times that conditions read, by zone and part.
	clocks map[string]map[string]int64
}

// subset is what the conditions of a policy read, and so what has to be prepared.
type subset struct {
	args  map[string]snapshot.Type
	zones map[string]bool
}

// newSubset fails on conditions that the peers do not know.
func newSubset(p *snapshot.Policy) (*subset, error) {
	s := &subset{args: map[string]snapshot.Type{}, zones: map[string]bool{}}
	for _, g := range p.Grants {
		if g.When == nil {
			continue
		}
		if err := s.read(g.When); err != nil {
			return nil, fmt.Errorf("grant %s: %w", g.ID, err)
		}
	}
	return s, nil
}

func (s *subset) read(c *snapshot.Cond) error {
	switch c.Op {
	case snapshot.OpTrue, snapshot.OpFalse, snapshot.OpBefore, snapshot.OpAfter:
		return nil
	case snapshot.OpInRange:
		if _, err := types.ParseIPAddr(c.Value.Str); err != nil || c.From != snapshot.FromContext || c.Arg != "ip" {
			return fmt.Errorf("an address other than the caller's in %q is not in the shared subset", c.Value.Str)
		}
		return nil
	case snapshot.OpAnd, snapshot.OpOr, snapshot.OpNot:
		for _, k := range c.Kids {
			if err := s.read(k); err != nil {
				return err
			}
		}
		return nil
	case snapshot.OpEq, snapshot.OpNe, snapshot.OpLt, snapshot.OpLe, snapshot.OpGt, snapshot.OpGe, snapshot.OpIn:
		if c.With != nil {
			return fmt.Errorf("a comparison of two operands is not in the shared subset")
		}
	default:
		return fmt.Errorf("operator %d is not in the shared subset", c.Op)
	}
	switch c.From {
	case snapshot.FromArgs:
		t := c.Value.Type
		if c.Op == snapshot.OpIn {
			t = c.Values[0].Type
		}
		if old, ok := s.args[c.Arg]; ok && old != t {
			return fmt.Errorf("argument %s has two types", c.Arg)
		}
		s.args[c.Arg] = t
	case snapshot.FromClock:
		s.zones[c.Zone] = true
	default:
		return fmt.Errorf("source %d is not in the shared subset", c.From)
	}
	return nil
}

// call prepares a question.
func (s *subset) call(x []*index.Index, q authz.Question) (*call, error) {
	of := x[q.Tenant]
	c := &call{
		question: q, principal: of.PrincipalName(q.Principal), server: of.ServerName(q.Server), item: of.ItemName(q.Server, q.Item),
		args: map[string]any{}, now: q.Request.NowMS, clocks: map[string]map[string]int64{},
	}
	if q.Request.IP.IsValid() {
		c.ip = q.Request.IP.String()
	}
	for zone := range s.zones {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			return nil, err
		}
		c.clocks[zone] = clock(time.UnixMilli(c.now).In(loc))
	}
	return c, s.readArgs(c.args, q.Request.Args)
}

// readArgs keeps the arguments that have the type of the tool's schema, as a gateway does that checks before it asks: one
// of another type is absent, and reading it is an error.
func (s *subset) readArgs(into map[string]any, raw []byte) error {
	if raw == nil {
		return nil
	}
	var all map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&all); err != nil {
		return err
	}
	for name, v := range all {
		typ, read := s.args[name]
		switch v := v.(type) {
		case string:
			if typ == snapshot.TypeString || !read {
				into[name] = v
			}
		case bool:
			if typ == snapshot.TypeBool || !read {
				into[name] = v
			}
		case json.Number:
			if n, err := v.Int64(); err == nil && (typ == snapshot.TypeNumber || !read) {
				into[name] = n
			}
		}
	}
	return nil
}

func clock(t time.Time) map[string]int64 {
	weekday := int64(t.Weekday())
	if weekday == 0 {
		weekday = 7
	}
	return map[string]int64{
		"minute": int64(60*t.Hour() + t.Minute()), "hour": int64(t.Hour()), "weekday": weekday, "day": int64(t.Day()),
		"month": int64(t.Month()), "year": int64(t.Year()),
	}
}
