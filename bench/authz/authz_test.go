package authz_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/bench/authz"
)

func TestTheBenchmarkDecidesBothWays(t *testing.T) {
	t.Parallel()
	f, err := authz.Run(1000)
	if err != nil {
		t.Fatal(err)
	}
	if f.ViewMean <= 0 || f.ColdMean <= 0 || f.List50 <= 0 || f.IndexBytes == 0 {
		t.Fatalf("a figure is missing: %+v", f)
	}
	if f.ViewAllocs > 0.01 {
		t.Fatalf("a decision allocates: %v", f.ViewAllocs)
	}
	t.Logf("%+v", *f)
}
