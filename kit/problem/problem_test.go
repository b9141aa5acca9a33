package problem_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestAProblemSurvivesWrapping(t *testing.T) {
	t.Parallel()
	cause := errors.New("connection refused")
	p := problem.New(problem.Unavailable, "the database is away", "start it").Because(cause)
	err := fmt.Errorf("create user: %w", p)
	got, ok := problem.As(err)
	if !ok || got.Fix != "start it" || problem.CodeOf(err) != problem.Unavailable || !errors.Is(err, cause) {
		t.Fatalf("got %+v", got)
	}
	if problem.CodeOf(errors.New("x")) != problem.Internal || problem.CodeOf(nil) != "" {
		t.Fatal("an ordinary error is internal, no error has no code")
	}
}

func TestEveryCodeReturnsFromItsWireName(t *testing.T) {
	t.Parallel()
	for _, c := range []problem.Code{
		problem.Invalid, problem.NotFound, problem.Conflict, problem.Denied, problem.Unauthenticated,
		problem.Unavailable, problem.Exhausted, problem.Timeout, problem.Internal,
	} {
		if problem.FromRPC(c.RPC()) != c {
			t.Errorf("%s does not come back from %q", c, c.RPC())
		}
		if c.HTTPStatus() < 400 || c.Exit() == 0 {
			t.Errorf("%s looks like success", c)
		}
	}
}
