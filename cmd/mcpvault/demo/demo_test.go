package demo

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/devmode"
)

func TestTheAuditIsCompleteWhenEachDecisionIsThereOnce(t *testing.T) {
	t.Parallel()
	whole := []record{{ID: "a", Kind: "call"}, {ID: "b", Kind: "intent"}, {ID: "c", Kind: "outcome", IntentID: "b"}, {ID: "z", Kind: "call"}}
	for name, tc := range map[string]struct {
		records []record
		want    string
	}{
		"whole":               {whole, ""},
		"unknown outcome":     {[]record{whole[0], whole[1], {ID: "c", Kind: "unknown_outcome", IntentID: "b"}}, ""},
		"a call is missing":   {whole[1:], "1 are missing and 0 are there twice"},
		"an outcome is":       {whole[:2], "1 are missing and 0 are there twice"},
		"a call is twice":     {append(whole[:4:4], whole[0]), "0 are missing and 1 are there twice"},
		"an outcome is twice": {append(whole[:4:4], whole[2]), "0 are missing and 1 are there twice"},
	} {
		tour := &tour{ids: map[string]bool{"a": true, "b": true}}
		if err := tour.complete(tc.records); (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheTourEndsWhereAPromiseIsBroken(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	tour := &tour{
		cfg: Config{Out: &out, CLI: func(_ context.Context, args, _ []string, stdout, stderr io.Writer) int {
			if args[0] == "mcp" && args[2] == "demo/echo" {
				_, _ = io.WriteString(stdout, "hello\n")
				_, _ = io.WriteString(stderr, "decision allow 01J 0.2 ms snapshot=1.1 cell=local/n1\n")
				return 0
			}
			return 0 // payments/refund is allowed, which it must not be.
		}},
		info: &devmode.Info{}, sum: &Summary{OK: true}, ids: map[string]bool{},
	}
	tour.take(t.Context(), time.Second)
	if tour.sum.OK || len(tour.sum.Steps) != 3 || tour.sum.Steps[2].OK || !tour.sum.Steps[1].OK || !tour.ids["01J"] {
		t.Fatalf("%+v\n%s", tour.sum, out.String())
	}
	for _, want := range []string{"$ mcpvault mcp call payments/refund amount=5 --as alice\n", "✘ mcpvault mcp call payments/refund amount=5 --as alice: exit status 0, expected 4"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("missing %q in\n%s", want, out.String())
		}
	}
}

func TestWordsAreWrittenAsAShellTakesThem(t *testing.T) {
	t.Parallel()
	if got := quoted([]string{"grant", "--when", "context.args.amount < 100", "it's"}); got != `grant --when 'context.args.amount < 100' 'it'\''s'` {
		t.Fatal(got)
	}
	if ms := milliseconds("published generation 4, applied by 3 of 3 nodes in 38 ms"); ms != 38 {
		t.Fatal(ms)
	}
}

func TestWaitingEnds(t *testing.T) {
	t.Parallel()
	n := 0
	if _, err := until(t.Context(), time.Minute, "three", func() error {
		if n++; n < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if _, err := until(t.Context(), time.Millisecond, "never", func() error { return errors.New("not yet") }); err == nil || !strings.Contains(err.Error(), "never: not within") {
		t.Fatal(err)
	}
}
