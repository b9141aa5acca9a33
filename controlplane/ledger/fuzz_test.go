package ledger

import (
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// FuzzRow makes a row of any leaf: always one that PostgreSQL takes.
func FuzzRow(f *testing.F) {
	b, err := proto.Marshal(&auditv1.Record{
		Id: "x", TenantId: "0192f0a0-0000-7000-8000-000000000001", Target: strings.Repeat("ä", 400), TimeMs: 1 << 62,
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, leaf []byte) {
		r := row(7, leaf)
		if r.Index != 7 || string(r.Leaf) != string(leaf) || len(r.Tenant) != 36 || r.At.Year() > 9999 || r.At.Year() < 1970 {
			t.Fatalf("%+v", r)
		}
		for _, s := range []string{r.ID, r.IntentID, r.Reason, r.Principal, r.Server, r.Target} {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") || len(s) > 3*maxText {
				t.Fatalf("%q", s)
			}
		}
	})
}

// FuzzDelivery reads any request.
func FuzzDelivery(f *testing.F) {
	b, err := proto.Marshal(&cellv1.DeliverAuditRequest{LogId: "mcpvault/audit/c/n/1", Records: [][]byte{{1}}, Checkpoint: []byte("x")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req cellv1.DeliverAuditRequest
		if proto.Unmarshal(raw, &req) != nil {
			return
		}
		if d, err := parseDelivery("c", "n", &req); err == nil && (d.first < 0 || d.end() < d.first || !strings.HasPrefix(d.logID, "mcpvault/audit/c/n/")) {
			t.Fatalf("%+v", d)
		}
	})
}

// memory keeps tiles as the store does.
type memory map[tileID][]byte

func (m memory) AuditTiles(_ context.Context, _ int32, want []store.AuditTile) ([]store.AuditTile, error) {
	var out []store.AuditTile
	for _, w := range want {
		if h, ok := m[tileID{w.Level, w.N}]; ok {
			out = append(out, store.AuditTile{Level: w.Level, N: w.N, Hashes: append([]byte(nil), h...)})
		}
	}
	return out, nil
}

// TestTilesAgreeWithTheTree grows a tree in runs, over three levels of tiles, and compares every root and some proofs.
func TestTilesAgreeWithTheTree(t *testing.T) {
	t.Parallel()
	m := memory{}
	var ref tlog.Tree
	size := int64(0)
	step := int64(1)
	for size < 70_000 {
		tr := newTree(m, 1, size)
		if err := tr.load(t.Context(), tr.rightEdge()); err != nil {
			t.Fatal(err)
		}
		for range step {
			leaf := tlog.LeafHash([]byte{byte(size), byte(size >> 8), byte(size >> 16)})
			tr.add(leaf)
			ref.Push(leaf)
			size++
		}
		for _, c := range tr.changed() {
			m[tileID{c.Level, c.N}] = c.Hashes
		}
		fresh := newTree(m, 1, size)
		root, err := fresh.root(t.Context(), size)
		if err != nil || root != ref.Root() {
			t.Fatalf("root of %d: %v", size, err)
		}
		for _, i := range []int64{0, size / 3, size - 1} {
			proof, err := tlog.ProveRecord(size, i, fresh.reader(t.Context()))
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(proof, size, root, i, tlog.LeafHash([]byte{byte(i), byte(i >> 8), byte(i >> 16)})); err != nil {
				t.Fatalf("record %d in %d: %v", i, size, err)
			}
		}
		step = step*3%8191 + 1
	}
}
