package judge_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/judge"
)

var (
	tools = []string{"read", "flip"}
	read  = judge.Right{Person: "ann", Tool: "read"}
	flip  = judge.Right{Person: "ann", Tool: "flip"}
)

// answer is one that is begun now and given a moment later.
func answer(node string) judge.Answer {
	from := time.Now()
	time.Sleep(time.Millisecond)
	return judge.Answer{Person: "ann", Node: node, From: from, Until: time.Now()}
}

// kinds are what a judge has found.
func kinds(j *judge.Judge) (all []string) {
	_, wrong := j.Wrong()
	for _, w := range wrong {
		all = append(all, w.Kind)
	}
	return all
}

func want(t *testing.T, j *judge.Judge, expected ...string) {
	t.Helper()
	if got := kinds(j); !slices.Equal(got, expected) {
		_, wrong := j.Wrong()
		t.Errorf("found %v, want %v: %v", got, expected, wrong)
	}
}

func TestAnAnswerBeforeAnyChangeIsJudgedByWhatWasGiven(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		j.Listed(answer("n1"), []string{"read"})
		want(t, j)
		j.Listed(answer("n1"), []string{"read", "flip"})
		j.Listed(answer("n1"), nil)
		want(t, j, judge.WrongAllow, judge.WrongDeny)
		j.Listed(answer("n1"), []string{"read", "of another server"})
		want(t, j, judge.WrongAllow, judge.WrongDeny, judge.WrongAllow)
	})
}

func TestAChangeUnderWayMayOrMayNotBeInForce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		before := answer("n1")
		time.Sleep(time.Millisecond)
		j.Submit(flip, true)
		j.Listed(answer("n1"), []string{"read"})
		j.Listed(answer("n1"), []string{"read", "flip"})
		want(t, j)
		j.Listed(before, []string{"read", "flip"}) // It was given before the change was asked for.
		want(t, j, judge.WrongAllow)
	})
}

func TestARightThatWasTakenAwayIsGoneOnceTheNodeHasSaidSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read, flip)
		change := j.Submit(flip, false)
		time.Sleep(time.Millisecond)
		underWay := answer("n1") // Begun before the acknowledgement.
		change.Acked("n1")
		time.Sleep(time.Millisecond)
		j.Called(underWay, "c1", "flip", judge.Allowed)
		j.Called(answer("n2"), "c2", "flip", judge.Allowed) // The other node has said nothing.
		want(t, j)
		j.Called(answer("n1"), "c3", "flip", judge.Allowed)
		want(t, j, judge.WrongAllow)
		j.Called(answer("n1"), "c4", "flip", judge.Refused)
		want(t, j, judge.WrongAllow)
	})
}

func TestARightThatWasGivenIsThereOnceTheNodeHasSaidSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		j.Submit(flip, true).Acked("n1")
		time.Sleep(time.Millisecond)
		j.Called(answer("n1"), "c1", "flip", judge.Refused)
		want(t, j, judge.WrongDeny)
	})
}

func TestAChangeThatWasCertainlyNotMadeAllowsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		j.Submit(flip, true).Void()
		j.Called(answer("n1"), "c1", "flip", judge.Allowed)
		want(t, j, judge.WrongAllow)
	})
}

func TestAnUnknownChangeEndsWithTheNextThatIsAcknowledged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		j.Submit(flip, true) // Nobody ever learns what became of it.
		j.Submit(flip, false).Acked("n1")
		time.Sleep(time.Millisecond)
		j.Listed(answer("n2"), []string{"read", "flip"})
		want(t, j)
		j.Listed(answer("n1"), []string{"read", "flip"})
		want(t, j, judge.WrongAllow)
	})
}

func TestANodeThatGoesBackIsFound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		j := judge.New(tools, read)
		at := func(node string, epoch, generation uint64) judge.Answer {
			a := answer(node)
			a.Version = judge.Version{Epoch: epoch, Generation: generation}
			time.Sleep(time.Millisecond)
			return a
		}
		early := at("n1", 1, 6)
		for _, a := range []judge.Answer{at("n1", 1, 7), early, at("n1", 1, 8), at("n2", 1, 5), at("n1", 2, 1), {Person: "ann", Node: "n1", From: time.Now(), Until: time.Now()}} {
			j.Listed(a, []string{"read"})
		}
		want(t, j)
		time.Sleep(time.Millisecond)
		j.Listed(at("n1", 1, 9), []string{"read"})
		want(t, j, judge.Rollback)
	})
}

func TestExecutionsMustBeWhatCallersWereTold(t *testing.T) {
	t.Parallel()
	j := judge.New(tools, read)
	a := judge.Answer{Person: "ann", Node: "n1", From: time.Now(), Until: time.Now()}
	for id, outcome := range map[string]judge.Outcome{"ok": judge.Allowed, "broke": judge.Unknown, "broke too": judge.Unknown} {
		j.Called(a, id, "read", outcome)
	}
	j.Called(a, "refused", "flip", judge.Refused)
	j.Executions(map[string]int{"ok": 1, "broke": 1})
	want(t, j)
	for name, c := range map[string]struct {
		counted map[string]int
		kind    string
	}{
		"a call that ran twice":                     {map[string]int{"ok": 2, "broke": 1}, judge.Doubled},
		"one of unknown outcome that ran twice":     {map[string]int{"ok": 1, "broke": 2}, judge.Doubled},
		"one that was refused and ran":              {map[string]int{"ok": 1, "refused": 1}, judge.Stray},
		"one that nobody made":                      {map[string]int{"ok": 1, "from nowhere": 1}, judge.Stray},
		"one that was answered and never ran":       {map[string]int{"broke": 1}, judge.Invented},
		"one whose answer somebody else had earned": {map[string]int{}, judge.Invented},
	} {
		j := judge.New(tools, read)
		j.Called(a, "ok", "read", judge.Allowed)
		j.Called(a, "broke", "read", judge.Unknown)
		j.Called(a, "refused", "flip", judge.Refused)
		j.Executions(c.counted)
		if got := kinds(j); !slices.Equal(got, []string{c.kind}) {
			t.Errorf("%s: found %v, want %s", name, got, c.kind)
		}
	}
}

func TestEveryAnswerMustBeOnRecordOnce(t *testing.T) {
	t.Parallel()
	j := judge.New(tools, read)
	for id, effects := range map[string]bool{"list": false, "refusal": false, "write": true} {
		j.Closed(judge.Answer{Decision: id, Effects: effects}, "")
	}
	all := []judge.Record{{ID: "list"}, {ID: "write", Intent: true}, {ID: "o1", Outcome: true, Of: "write"}, {ID: "refusal"}, {ID: "of somebody else"}}
	withdrawn := append(slices.Clone(all[:2]), judge.Record{ID: "write", Refused: true}, judge.Record{ID: "refusal"})
	if got := j.Audit(withdrawn); got.Lost != 0 || got.Doubled != 0 {
		t.Errorf("a call was refused because its intent came too late: %+v", got)
	}
	if got := j.Audit(all); got.Lost != 0 || got.Doubled != 0 || got.Answers != 3 || got.Records != 5 {
		t.Errorf("all are there: %+v", got)
	}
	for name, c := range map[string]struct {
		records       []judge.Record
		lost, doubled int
	}{
		"a record is missing":           {slices.Delete(slices.Clone(all), 0, 1), 1, 0},
		"an intent is missing":          {slices.Delete(slices.Clone(all), 1, 2), 1, 0},
		"an outcome is missing":         {slices.Delete(slices.Clone(all), 2, 3), 1, 0},
		"a record is there twice":       {append(slices.Clone(all), judge.Record{ID: "list"}), 0, 1},
		"an outcome is there twice":     {append(slices.Clone(all), judge.Record{ID: "o2", Outcome: true, Of: "write"}), 0, 1},
		"an intent has a second record": {append(slices.Clone(all), judge.Record{ID: "write"}), 0, 1},
		"nothing is there":              {nil, 3, 0},
	} {
		got := j.Audit(c.records)
		if got.Lost != c.lost || got.Doubled != c.doubled || len(got.Examples) != c.lost+c.doubled {
			t.Errorf("%s: %+v, want %d lost and %d doubled", name, got, c.lost, c.doubled)
		}
	}
}

// gateway is a gateway of two nodes in a few lines, with a flaw that can be switched on.
type gateway struct {
	flaw    string
	rights  []map[judge.Right]bool // by node
	version []uint64
}

func (g *gateway) apply(node int, r judge.Right, allowed bool) {
	if g.flaw == "ignores what is taken away" && !allowed {
		return
	}
	g.version[node]++
	g.rights[node][r] = allowed
}

func (g *gateway) shown(person string, node int) (all []string) {
	for _, tool := range tools {
		if g.rights[node][judge.Right{Person: person, Tool: tool}] || g.flaw == "shows everything" {
			all = append(all, tool)
		}
	}
	return all
}

// play lets a gateway live for a while: rights come and go, nodes acknowledge late, some never, and are asked all the time.
func play(seed uint64, flaw string) *judge.Judge {
	random := rand.New(rand.NewPCG(seed, 1))
	j := judge.New(tools, read)
	g := &gateway{flaw: flaw, rights: []map[judge.Right]bool{{read: true}, {read: true}}, version: []uint64{1, 1}}
	type pending struct {
		change  *judge.Change
		allowed bool
		applied []bool
	}
	var last *pending
	for range 2000 {
		time.Sleep(time.Duration(random.IntN(3)) * time.Millisecond)
		node := random.IntN(2)
		switch random.IntN(10) {
		case 0:
			if last == nil || last.applied[0] && last.applied[1] {
				allowed := random.IntN(2) == 0
				last = &pending{j.Submit(flip, allowed), allowed, make([]bool, 2)}
			}
		case 1, 2:
			if last != nil && !last.applied[node] {
				g.apply(node, flip, last.allowed)
				last.applied[node] = true
				if flaw == "acknowledges without applying" {
					g.rights[node][flip] = !last.allowed
				}
				if random.IntN(4) > 0 {
					last.change.Acked(fmt.Sprint(node))
				}
			}
		case 3:
			if flaw == "forgets on restart" && random.IntN(4) == 0 {
				g.rights[node], g.version[node] = map[judge.Right]bool{read: true}, 1
			}
		default:
			a := answer(fmt.Sprint(node))
			a.Version = judge.Version{Epoch: 1, Generation: g.version[node]}
			j.Listed(a, g.shown("ann", node))
		}
	}
	return j
}

func TestARightGatewayIsNeverCalledWrongAndEveryFlawIsFound(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			if n, wrong := play(seed, "").Wrong(); n > 0 {
				t.Errorf("seed %d: a gateway without a flaw: %v", seed, wrong)
			}
			for _, flaw := range []string{"ignores what is taken away", "shows everything", "acknowledges without applying", "forgets on restart"} {
				if n, _ := play(seed, flaw).Wrong(); n == 0 {
					t.Errorf("seed %d: a gateway that %s is not found out", seed, flaw)
				}
			}
		})
	}
}
