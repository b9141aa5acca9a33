package main

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// TestAFewKillsUnderLoadLoseNothing is the short form of the campaign.
func TestAFewKillsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	dir, bin, err := build(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r, err := run(ctx, Config{Bin: bin, Kills: 5, Seed: 7, Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Found {
		t.Error(f)
	}
	if r.Kills < 5 || r.Answered < 20 || r.Changes < 5 || r.Sessions < 5 || r.History < 100 {
		t.Errorf("too little happened to say anything: %+v", r)
	}
	t.Logf("%+v", *r)
}

// op is an operation of one client after the other's: times are in seconds.
func op(in input, out bool, call, end int64) porcupine.Operation {
	return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
}

func TestTheModelsTellWhatCanHaveHappened(t *testing.T) {
	t.Parallel()
	open, end, seen := input{op: opMake}, input{op: opEnd}, input{op: opSeen}
	at := func(g uint64) input { return input{op: opSeen, at: g} }
	for name, c := range map[string]struct {
		model porcupine.Model
		ops   []porcupine.Operation
		want  bool
	}{
		"opened, used, ended, refused":            {once(0), []porcupine.Operation{op(open, true, 1, 2), op(seen, false, 3, 4), op(end, true, 5, 6), op(seen, true, 7, 8)}, true},
		"used after its end":                      {once(0), []porcupine.Operation{op(open, true, 1, 2), op(end, true, 5, 6), op(seen, false, 7, 8)}, false},
		"used while it was ended":                 {once(0), []porcupine.Operation{op(open, true, 1, 2), op(end, true, 5, 8), op(seen, false, 6, 7)}, true},
		"refused, and nobody ended it":            {once(0), []porcupine.Operation{op(open, true, 1, 2), op(seen, true, 3, 4)}, false},
		"refused after an end that nobody knows":  {once(0), []porcupine.Operation{op(open, true, 1, 2), op(end, true, 3, never), op(seen, true, 5, 6)}, true},
		"back to life after such an end":          {once(0), []porcupine.Operation{op(open, true, 1, 2), op(end, true, 3, never), op(seen, true, 5, 6), op(seen, false, 7, 8)}, false},
		"killed, served":                          {once(1), []porcupine.Operation{op(end, true, 1, 2), op(seen, false, 3, 4)}, false},
		"generations that rise":                   {rising, []porcupine.Operation{op(at(1), true, 1, 2), op(at(3), true, 3, 4)}, true},
		"a generation from before":                {rising, []porcupine.Operation{op(at(3), true, 1, 2), op(at(1), true, 3, 4)}, false},
		"a generation from before, asked earlier": {rising, []porcupine.Operation{op(at(3), true, 1, 4), op(at(1), true, 2, 5)}, true},
	} {
		if got := porcupine.CheckOperations(c.model, c.ops); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
