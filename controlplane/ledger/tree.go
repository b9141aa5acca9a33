package ledger

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/tlog"
)

const (
	hashSize = sha256.Size
	// A tile spans tileHeight levels and is tileWidth hashes wide.
	tileHeight = 8
	tileWidth  = 1 << tileHeight
)

type tileID struct {
	level int32
	n     int64
}

// tiles is where tiles are kept: a transaction of the store.
type tiles interface {
	AuditTiles(ctx context.Context, log int32, want []store.AuditTile) ([]store.AuditTile, error)
}

// tree is the Merkle tree of one log on tiles that are read when they are needed. Only the right edge is ever written.
type tree struct {
	tiles tiles
	log   int32
	size  int64
	have  map[tileID][]byte
	dirty map[tileID]bool
}

func newTree(t tiles, log int32, size int64) *tree {
	return &tree{tiles: t, log: log, size: size, have: map[tileID][]byte{}, dirty: map[tileID]bool{}}
}

// rightEdge lists the tiles that are not full.
func (t *tree) rightEdge() []tileID {
	var ids []tileID
	for level := int32(0); t.size>>(tileHeight*level) > 0; level++ {
		if n := t.size >> (tileHeight * level); n%tileWidth != 0 {
			ids = append(ids, tileID{level, n / tileWidth})
		}
	}
	return ids
}

// load reads tiles that are not here yet.
func (t *tree) load(ctx context.Context, ids []tileID) error {
	var want []store.AuditTile
	for _, id := range ids {
		if _, ok := t.have[id]; !ok {
			want = append(want, store.AuditTile{Level: id.level, N: id.n})
		}
	}
	if len(want) == 0 {
		return nil
	}
	got, err := t.tiles.AuditTiles(ctx, t.log, want)
	if err != nil {
		return fmt.Errorf("read audit tiles: %w", err)
	}
	for _, g := range got {
		t.have[tileID{g.Level, g.N}] = g.Hashes
	}
	for _, w := range want {
		if len(t.have[tileID{w.Level, w.N}]) == 0 {
			return fmt.Errorf("audit tile %d/%d of log %d is missing", w.Level, w.N, t.log)
		}
	}
	return nil
}

// add appends a record's leaf hash. The right edge must be loaded.
func (t *tree) add(leaf tlog.Hash) {
	h := leaf
	n := t.size
	t.size++
	for level := int32(0); ; level++ {
		id := tileID{level, n / tileWidth}
		t.have[id] = append(t.have[id], h[:]...)
		t.dirty[id] = true
		if n%tileWidth != tileWidth-1 {
			return
		}
		h, n = subtree(t.have[id]), n/tileWidth
	}
}

// changed lists the tiles to be written, in order.
func (t *tree) changed() []store.AuditTile {
	var out []store.AuditTile
	for id := range t.dirty {
		out = append(out, store.AuditTile{Level: id.level, N: id.n, Hashes: t.have[id]})
	}
	slices.SortFunc(out, func(a, b store.AuditTile) int {
		return int(a.Level-b.Level)*2 + compare(a.N, b.N)
	})
	return out
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// subtree is the root of a power of two of hashes.
func subtree(hashes []byte) tlog.Hash {
	if len(hashes) == hashSize {
		return tlog.Hash(hashes)
	}
	half := len(hashes) / 2
	return tlog.NodeHash(subtree(hashes[:half]), subtree(hashes[half:]))
}

// root is that of the first size records.
func (t *tree) root(ctx context.Context, size int64) (tlog.Hash, error) {
	return tlog.TreeRoot(size, t.reader(ctx))
}

// reader reads hashes of complete subtrees.
func (t *tree) reader(ctx context.Context) tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		type place struct {
			id         tileID
			from, upto int64
		}
		places := make([]place, len(indexes))
		ids := make([]tileID, len(indexes))
		for i, index := range indexes {
			level, n := tlog.SplitStoredHashIndex(index)
			width := int64(1) << (level % tileHeight)
			first := n * width
			p := place{id: tileID{int32(level / tileHeight), first / tileWidth}, from: first % tileWidth}
			p.upto = p.from + width
			places[i], ids[i] = p, p.id
		}
		slices.SortFunc(ids, func(a, b tileID) int { return int(a.level-b.level)*2 + compare(a.n, b.n) })
		if err := t.load(ctx, slices.Compact(ids)); err != nil {
			return nil, err
		}
		out := make([]tlog.Hash, len(indexes))
		for i, p := range places {
			tile := t.have[p.id]
			if int64(len(tile)) < p.upto*hashSize {
				return nil, fmt.Errorf("audit tile %d/%d of log %d has %d bytes", p.id.level, p.id.n, t.log, len(tile))
			}
			out[i] = subtree(tile[p.from*hashSize : p.upto*hashSize])
		}
		return out, nil
	})
}
