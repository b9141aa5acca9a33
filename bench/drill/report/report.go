// Package report is what is left of a drill: figures, timeline and verdict, as JSON for programs, Markdown for people and JUnit for
// build servers, signed so that nobody improves them later.
package report

import (
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
	"github.com/mcpvault/mcpvault/bench/drill/load"
)

// Drill is the result of one drill. A program reads the first six fields; they do not change.
type Drill struct {
	Name   string `json:"name"`
	Passed bool   `json:"passed"`
	// RTO is how long what the drill breaks was away, in milliseconds; Recovers says what came back.
	RTO     float64 `json:"rto_ms"`
	Failed  int     `json:"failed_calls"`
	Wrong   int     `json:"wrong_decisions"`
	Lost    int     `json:"lost_records"`
	Breaks  string  `json:"breaks"`
	Blast   string  `json:"blast_radius"`
	Recover string  `json:"recovers"`
	// Unavailable says why the drill was not run; it has not passed then.
	Unavailable string `json:"unavailable,omitempty"`
	// Aborted says why it was ended early.
	Aborted string `json:"aborted,omitempty"`
	// Findings are the promises that did not hold; none when it passed.
	Findings []string `json:"findings"`
	// Loses is what is lost, Works what goes on meanwhile, and Until for how long: a row of the degradation table.
	Loses string `json:"loses"`
	Works string `json:"still_works"`
	Until string `json:"until"`

	Unknown    int            `json:"unknown_calls"`
	Closed     int            `json:"closed_calls"`
	Doubled    int            `json:"doubled_records"`
	Counts     load.Counts    `json:"counts"`
	Errors     map[string]int `json:"errors"`
	Executions int            `json:"executions"`
	Answers    int            `json:"answers_on_record"`
	// Gap is the longest time without a right answer anywhere, in milliseconds; Stale the longest time from a policy change to the last
	// node that could be reached.
	Gap    float64            `json:"longest_gap_ms"`
	Stale  float64            `json:"max_propagation_ms"`
	Facts  map[string]float64 `json:"facts"`
	Limits Limits             `json:"limits"`

	Before Phase `json:"before"`
	During Phase `json:"during"`
	After  Phase `json:"after"`

	Timeline []Event       `json:"timeline"`
	Wrongs   []judge.Wrong `json:"wrong,omitempty"`
	Started  time.Time     `json:"started"`
	Seconds  float64       `json:"seconds"`
}

// Limits are what a drill must keep to pass; a negative one is not held.
type Limits struct {
	RTO     float64 `json:"rto_ms"`
	Failed  int     `json:"failed_calls"`
	Unknown int     `json:"unknown_calls"`
	Changes int     `json:"failed_changes"`
}

// Phase is what the requests of one part of a drill came to; times in milliseconds.
type Phase struct {
	Seconds  float64 `json:"seconds"`
	Requests int     `json:"requests"`
	NotOK    int     `json:"not_ok"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
}

// Event is one line of a timeline.
type Event struct {
	// Seconds since the drill began.
	Seconds float64 `json:"seconds"`
	What    string  `json:"what"`
}

// Run is several drills.
type Run struct {
	Drills []Drill `json:"drills"`

	Form         int        `json:"form"`
	Started      time.Time  `json:"started"`
	Seconds      float64    `json:"seconds"`
	Version      string     `json:"version"`
	Installation string     `json:"installation"`
	Machine      string     `json:"machine"`
	Load         load.Rates `json:"load"`
}

// Form counts changes of what a report says.
const Form = 1

// Passed reports whether every drill was run and passed.
func (r *Run) Passed() bool {
	for _, d := range r.Drills {
		if !d.Passed {
			return false
		}
	}
	return len(r.Drills) > 0
}
