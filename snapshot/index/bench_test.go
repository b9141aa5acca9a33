package index_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func BenchmarkOpen10k(b *testing.B) {
	raw, err := builder.Build(snapshottest.Large(10_000))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := index.Open(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkView(b *testing.B) {
	raw, err := builder.Build(snapshottest.Large(10_000))
	if err != nil {
		b.Fatal(err)
	}
	x, err := index.Open(raw)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		v := x.View(index.PrincipalID(i*7919%10_000), index.ServerID(i%100))
		if v.Disabled() {
			b.Fatal("disabled")
		}
		i++
	}
}
