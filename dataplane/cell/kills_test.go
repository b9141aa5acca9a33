package cell

import (
	"bytes"
	"testing"
)

func TestANodeTellsItsPeersTheNewestKillsThatFit(t *testing.T) {
	t.Parallel()
	var all [][]byte
	for i := range 3000 {
		all = append(all, bytes.Repeat([]byte{byte(i)}, 1000))
	}
	got := newestKills(all)
	if len(got) != killsBytes/1000 || &got[len(got)-1][0] != &all[len(all)-1][0] {
		t.Fatalf("%d kills of %d", len(got), len(all))
	}
	if len(newestKills(all[:5])) != 5 || len(newestKills(nil)) != 0 {
		t.Fatal("few kills fit all")
	}
}
