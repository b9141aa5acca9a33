package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// broken are the builds that do one thing wrong, and what that is.
var broken = []struct{ tag, what string }{}

// Attempt is what became of one broken build.
type Attempt struct {
	Tag    string   `json:"tag"`
	What   string   `json:"what"`
	Caught bool     `json:"caught"`
	Found  []string `json:"found"`
}

// tryBroken has the campaign look for each of them.
func tryBroken(ctx context.Context, kills int, seed uint64, only string, say func(string, ...any)) ([]Attempt, error) {
	var all []Attempt
	for _, b := range broken {
		if only != "" && b.tag != only {
			continue
		}
		dir, bin, err := build(ctx, b.tag)
		if err != nil {
			return all, err
		}
		r, err := run(ctx, Config{Bin: bin, Kills: kills, Seed: seed})
		_ = os.RemoveAll(dir)
		if err != nil {
			return all, fmt.Errorf("%s: %w", b.tag, err)
		}
		a := Attempt{b.tag, b.what, len(r.Found) > 0, r.Found[:min(len(r.Found), 3)]}
		say("%s (%s): caught: %v %s", a.Tag, a.What, a.Caught, strings.Join(a.Found[:min(len(a.Found), 1)], ""))
		all = append(all, a)
	}
	return all, nil
}

func missed(all []Attempt) error {
	for _, a := range all {
		if !a.Caught {
			return fmt.Errorf("%s was not caught: %s", a.Tag, a.What)
		}
	}
	return nil
}
