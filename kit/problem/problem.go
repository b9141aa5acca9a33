// Package problem is the error that a person reads. It crosses rooms and wires intact and says three things: which kind
// of failure it is, what failed, and what to do next. How each kind looks on a wire is one table in table.go.
package problem

import (
	"errors"
	"fmt"
)

// Code is the stable word for a kind of failure.
type Code string

// The codes. A new one needs a row in the table.
const (
	Invalid         Code = "invalid"
	NotFound        Code = "not_found"
	Conflict        Code = "conflict"
	Denied          Code = "denied"
	Unauthenticated Code = "unauthenticated"
	Unavailable     Code = "unavailable"
	Exhausted       Code = "exhausted"
	Timeout         Code = "timeout"
	Internal        Code = "internal"
)

// Problem is one failure, told to a person.
type Problem struct {
	Code Code
	// What names the thing and what is wrong with it: "server jira@3 is not approved".
	What string
	// Fix is the next step: "ask a registry approver, or use jira@2". It may be empty.
	Fix string
	// Cause is for the log; it never crosses a wire.
	Cause error
}

// New makes a problem.
func New(code Code, what, fix string) *Problem {
	return &Problem{Code: code, What: what, Fix: fix}
}

// Newf makes a problem whose what is formatted.
func Newf(code Code, fix, format string, args ...any) *Problem {
	return &Problem{Code: code, What: fmt.Sprintf(format, args...), Fix: fix}
}

// Because returns a copy that remembers the cause.
func (p *Problem) Because(cause error) *Problem {
	q := *p
	q.Cause = cause
	return &q
}

func (p *Problem) Error() string {
	s := p.What
	if p.Fix != "" {
		s += ": " + p.Fix
	}
	if p.Cause != nil {
		s += " (" + p.Cause.Error() + ")"
	}
	return s
}

func (p *Problem) Unwrap() error { return p.Cause }

// As finds the problem in an error's chain.
func As(err error) (*Problem, bool) {
	var p *Problem
	ok := errors.As(err, &p)
	return p, ok
}

// CodeOf returns the code of the problem in the chain, or Internal; "" for no error.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	if p, ok := As(err); ok {
		return p.Code
	}
	return Internal
}
