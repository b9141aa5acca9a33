package main

import (
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/anishathalye/porcupine"
)

// bound is how far behind a node's reads may be: what its peers have agreed on meanwhile, or the control plane has said, while it
// was being started. A read that is bounded so may be put anywhere between then and its answer.
const bound = 10 * time.Second

// history is what clients have seen, kept for a checker that knows nothing of how it came about.
type history struct {
	sessions, kills, generations map[string][]porcupine.Operation
	clients                      int
	n                            int
}

// What is done to a session or a person.
const (
	opMake = iota // the session is opened
	opEnd         // the session is ended, the person killed
	opSeen        // somebody looked: it is as at the beginning (false) or ended (true)
)

type input struct {
	op int
	// at is a generation.
	at uint64
}

func (h *history) add(to *map[string][]porcupine.Operation, key string, in input, out bool, begin, end int64) {
	if *to == nil {
		*to = map[string][]porcupine.Operation{}
	}
	h.clients++
	h.n++
	(*to)[key] = append((*to)[key], porcupine.Operation{ClientId: h.clients, Input: in, Call: begin, Output: out, Return: end})
}

// never is when an operation ends of which nobody knows whether it was done.
const never = math.MaxInt64

func (h *history) opened(id string, a answer) {
	h.add(&h.sessions, id, input{op: opMake}, true, a.began.UnixNano(), a.ended.UnixNano())
}

func (h *history) ended(id string, a answer) {
	h.add(&h.sessions, id, input{op: opEnd}, true, a.began.UnixNano(), a.ended.UnixNano())
}

func (h *history) maybeEnded(id string, a answer) {
	h.add(&h.sessions, id, input{op: opEnd}, true, a.began.UnixNano(), never)
}

// used keeps what a node said of a session, where it said something.
func (h *history) used(id string, node int, a answer) {
	if a.err != nil || a.status != http.StatusOK && a.status != http.StatusNotFound {
		return
	}
	h.add(&h.sessions, id, input{op: opSeen}, a.status == http.StatusNotFound, a.began.Add(-bound).UnixNano(), a.ended.UnixNano())
	h.generation(node, a)
}

func (h *history) killed(name string, begin, end time.Time) {
	h.add(&h.kills, name, input{op: opEnd}, true, begin.UnixNano(), end.UnixNano())
}

func (h *history) maybeKilled(name string, begin time.Time) {
	h.add(&h.kills, name, input{op: opEnd}, true, begin.UnixNano(), never)
}

// askedAs keeps whether a node still served a person.
func (h *history) askedAs(name string, _ int, a answer) {
	if a.err != nil || a.status != http.StatusUnauthorized && !a.done() {
		return
	}
	h.add(&h.kills, name, input{op: opSeen}, a.status == http.StatusUnauthorized, a.began.Add(-bound).UnixNano(), a.ended.UnixNano())
}

// generation keeps which version of the policy a node said that it had decided by.
func (h *history) generation(node int, a answer) {
	var epoch, generation uint64
	if a.err != nil {
		return
	}
	if _, err := fmt.Sscanf(a.header.Get("Mcpvault-Snapshot"), "%d.%d", &epoch, &generation); err != nil {
		return
	}
	h.add(&h.generations, fmt.Sprintf("n%d", node+1), input{op: opSeen, at: epoch<<32 | generation}, true, a.began.UnixNano(), a.ended.UnixNano())
}

// once is the model of what begins, is seen as it is, and is ended for good. States: not there yet, there, ended.
func once(first int) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return first },
		Step: func(state, in, out any) (bool, any) {
			const absent, there, gone = 0, 1, 2
			switch s := state.(int); in.(input).op {
			case opMake:
				return s == absent, there
			case opEnd:
				return s != absent, gone
			default:
				if out.(bool) {
					return s == gone, s
				}
				return s == there, s
			}
		},
		Equal:             func(a, b any) bool { return a == b },
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%d: %v", in.(input).op, out) },
	}
}

// rising is the model of one node's generations: what was decided by stays behind.
var rising = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, in, _ any) (bool, any) {
		at := in.(input).at
		return at >= state.(uint64), max(at, state.(uint64))
	},
	Equal: func(a, b any) bool { return a == b },
}

const checkLimit = 60 * time.Second

// check has every history checked and says which cannot have happened.
func (h *history) check() (found []string) {
	for _, m := range []struct {
		what  string
		model porcupine.Model
		all   map[string][]porcupine.Operation
	}{{"the session", once(0), h.sessions}, {"the kill of", once(1), h.kills}, {"the generations of", rising, h.generations}} {
		for key, ops := range m.all {
			switch r := porcupine.CheckOperationsTimeout(m.model, ops, checkLimit); r {
			case porcupine.Ok:
			case porcupine.Unknown:
				found = append(found, fmt.Sprintf("the history of %s %.16s could not be checked within %s", m.what, key, checkLimit))
			default:
				found = append(found, fmt.Sprintf("the history of %s %.16s, of %d operations, cannot have happened", m.what, key, len(ops)))
			}
		}
	}
	return found
}
