package authz_test

import (
	"math/rand/v2"
	"testing"

	"github.com/mcpvault/mcpvault/bench/authz"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	decision "github.com/mcpvault/mcpvault/snapshot/authz"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
)

func rows(tb testing.TB) compile.Input {
	tb.Helper()
	in, err := authz.Rows(0, authz.Full())
	if err != nil {
		tb.Fatal(err)
	}
	return in
}

func output(tb testing.TB) *compile.Output {
	tb.Helper()
	out, err := compile.Compile(rows(tb))
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func BenchmarkCompile10k(b *testing.B) {
	in := rows(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := compile.Compile(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuild10k(b *testing.B) {
	p := output(b).Policy
	b.ReportAllocs()
	for b.Loop() {
		if _, err := builder.Build(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen10k(b *testing.B) {
	raw := output(b).Index
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := index.Open(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecideCold10k(b *testing.B) {
	x, err := index.Open(output(b).Index)
	if err != nil {
		b.Fatal(err)
	}
	xs := []*index.Index{x}
	questions := authz.Questions(xs, 100_000, rand.New(rand.NewPCG(3, 3)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		questions[i%len(questions)].Decide(xs)
	}
}

// Live views of which a condition settles every call.
func BenchmarkDecideConditional10k(b *testing.B) {
	x, err := index.Open(output(b).Index)
	if err != nil {
		b.Fatal(err)
	}
	var questions []authz.Question
	var views []index.View
	for _, q := range authz.Questions([]*index.Index{x}, 4096, rand.New(rand.NewPCG(3, 3))) {
		v := x.View(q.Principal, q.Server)
		if decision.Decide(&v, q.Item, q.Request).Program != 0 {
			questions, views = append(questions, q), append(views, v)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		q := &questions[i%len(questions)]
		decision.Decide(&views[i%len(views)], q.Item, q.Request)
	}
}
