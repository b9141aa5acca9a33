package store_test

import (
	"errors"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/store"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"google.golang.org/protobuf/proto"
)

func list(version uint64, removed []string, names ...string) *cellv1.Members {
	m := &cellv1.Members{Version: version, Removed: removed}
	for _, n := range names {
		m.Members = append(m.Members, &cellv1.Member{Node: n, Raft: "10.0.0.1:7000"})
	}
	return m
}

func TestTheListOfMembersOnlyMovesForward(t *testing.T) {
	t.Parallel()
	cfg := store.Config{Dir: t.TempDir()}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	newest := list(4, []string{"n3"}, "n1", "n2")
	newest.KeysFrom = 2
	if err := errors.Join(s.PutMembers(list(3, nil, "n1", "n2", "n3")), s.PutMembers(newest)); err != nil {
		t.Fatal(err)
	}
	twice, far, back := list(5, []string{"n3"}, "n1", "n1"), list(5, []string{"n3"}, "n1"), list(5, []string{"n3"}, "n1")
	far.Members[0].Raft, far.KeysFrom = "somewhere", 2
	back.KeysFrom = 1
	for name, c := range map[string]struct {
		list *cellv1.Members
		want error
	}{
		"an older one":                   {list(3, nil, "n1", "n2", "n3"), store.ErrRollback},
		"another of the same number":     {list(4, []string{"n3"}, "n1"), store.ErrEquivocation},
		"one that forgets a removal":     {list(5, nil, "n1", "n2"), store.ErrInvalid},
		"one that takes a removed back":  {list(5, []string{"n3"}, "n1", "n3"), store.ErrInvalid},
		"nobody":                         {list(5, []string{"n3"}), store.ErrInvalid},
		"too many":                       {list(5, []string{"n3"}, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"), store.ErrInvalid},
		"one named twice":                {twice, store.ErrInvalid},
		"no address":                     {far, store.ErrInvalid},
		"a key that a removed one knows": {back, store.ErrInvalid},
	} {
		if err := s.PutMembers(c.list); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = store.Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if !proto.Equal(s.Members(), newest) {
		t.Errorf("after a restart: %v", s.Members())
	}
}

func TestOldSessionKeysAreDroppedForGood(t *testing.T) {
	t.Parallel()
	cfg := store.Config{Dir: t.TempDir()}
	s, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for id := uint32(1); id <= 3; id++ {
		if err := s.PutSessionKey(&cellv1.SessionKey{Id: id, Key: make([]byte, 32)}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := s.DropSessionKeys(3); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = store.Open(cfg); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if keys := s.SessionKeys(); len(keys) != 1 || keys[0].GetId() != 3 {
		t.Errorf("%v", keys)
	}
}
