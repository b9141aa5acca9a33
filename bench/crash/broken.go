package main

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// broken are the ways in which a build can be made wrong (see kit/broken), and what each means.
var broken = []struct{ way, what string }{
	{"allow-on-error", "a condition that cannot be evaluated allows"},
	{"drop-intent", "some calls go upstream without an intent on record"},
	{"late-intent", "the intent is written when the call is under way already"},
	{"drop-outcome", "some outcomes are not recorded"},
	{"late-outcome", "the caller is answered before the outcome is on the disk"},
	{"unmarked-unknown", "a restart leaves intents without an outcome as they are"},
	{"double-send", "some calls are sent upstream twice"},
	{"unheard-kill", "kills are acknowledged and not enforced"},
	{"stale-session", "the end of a session is acknowledged and not kept"},
	{"stale-policy", "every other generation is not served"},
	{"lost-change", "some grants are acknowledged and not written"},
}

// Attempt is what became of one broken build.
type Attempt struct {
	Way    string   `json:"way"`
	What   string   `json:"what"`
	Caught bool     `json:"caught"`
	Found  []string `json:"found"`
}

// tryBroken has the campaign look for each of them.
func tryBroken(ctx context.Context, kills int, seed uint64, only string, say func(string, ...any)) ([]Attempt, error) {
	var all []Attempt
	for _, b := range broken {
		if only != "" && b.way != only {
			continue
		}
		dir, bin, err := build(ctx, b.way)
		if err != nil {
			return all, err
		}
		r, err := run(ctx, Config{Bin: bin, Kills: kills, Seed: seed})
		_ = os.RemoveAll(dir)
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		if r == nil {
			r = &Report{}
		}
		if err != nil {
			r.Found = append(r.Found, "it does not get to its end: "+err.Error())
		}
		a := Attempt{b.way, b.what, len(r.Found) > 0, r.Found[:min(len(r.Found), 3)]}
		say("%s (%s): caught: %v %s", a.Way, a.What, a.Caught, strings.Join(a.Found[:min(len(a.Found), 1)], ""))
		all = append(all, a)
	}
	return all, nil
}

func missed(all []Attempt) error {
	for _, a := range all {
		if !a.Caught {
			return fmt.Errorf("%s was not caught: %s", a.Way, a.What)
		}
	}
	return nil
}
