// Package ledger collects the audit records of all cells into PostgreSQL and answers questions about them. It promises that
// every record of a node's log is stored exactly once, that nothing is stored that the node did not sign, and that a log
// which tells two stories is stopped and marked: its prefix up to the last witnessed checkpoint stays as evidence.
//
// The ledger is the witness of the nodes' logs: it keeps the whole Merkle tree of each, so every batch is held against the
// signed root that it must lead to.
package ledger

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// logPrefix begins the origin of every audit log: PREFIX/CELL/NODE/INCARNATION.
const logPrefix = "mcpvault/audit"

// maxBatch bounds the records of one delivery.
const maxBatch = 8192

// Config of a ledger.
type Config struct {
	Store  *store.Store
	Logger *slog.Logger
}

// Ledger is safe for concurrent use.
type Ledger struct {
	store *store.Store
	log   *slog.Logger
}

// New makes a ledger.
func New(cfg Config) *Ledger {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Ledger{store: cfg.Store, log: cfg.Logger}
}

// delivery is a request whose form and signature are good.
type delivery struct {
	logID, cell, node, key string
	first                  int64
	records                [][]byte
	// signed is the checkpoint's note; nil when the request only asks for the watermark.
	signed []byte
	cp     tlog.Checkpoint
	proof  []tlog.Hash
	from   int64
}

func (d *delivery) end() int64 { return d.first + int64(len(d.records)) }

// Deliver takes a run of records of the log of the node that the caller's certificate names. What it has already is passed
// over, records that lie behind a gap are not taken; the answer says from where to go on. A batch that contradicts what was
// witnessed raises an alarm on the log and is a Conflict, and so is everything that comes after it.
func (l *Ledger) Deliver(ctx context.Context, cell, node string, req *cellv1.DeliverAuditRequest) (*cellv1.DeliverAuditResponse, error) {
	d, err := parseDelivery(cell, node, req)
	if err != nil {
		return nil, err
	}
	var res *cellv1.DeliverAuditResponse
	var alarm string
	err = l.store.Platform(ctx, func(tx *store.Tx) error {
		head, err := tx.LockAuditLog(ctx, d.logID, cell, node, d.key)
		if err != nil {
			return fmt.Errorf("lock audit log: %w", err)
		}
		if alarm = head.Alarm; alarm != "" {
			return nil
		}
		in := intake{tx: tx, d: d, head: head, tree: newTree(tx, head.No, head.Size)}
		if alarm, err = in.take(ctx); err != nil {
			return err
		}
		if alarm != "" {
			return tx.SetAuditAlarm(ctx, head.No, alarm)
		}
		res = &cellv1.DeliverAuditResponse{NextIndex: uint64(in.head.Size), WitnessedSize: uint64(in.head.Witnessed)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if alarm != "" {
		l.log.ErrorContext(ctx, "an audit log is not what it was", slog.String("cell", cell), slog.String("node", node),
			slog.String("log", d.logID), slog.String("alarm", alarm))
		return nil, problem.Newf(problem.Conflict,
			"keep the node's audit directory as evidence, and start the node on an empty one; `mcpvault audit verify` shows the rest",
			"audit log %s is under alarm: %s", d.logID, alarm)
	}
	return res, nil
}

// parseDelivery checks everything that needs no database.
func parseDelivery(cell, node string, req *cellv1.DeliverAuditRequest) (*delivery, error) {
	bad := func(format string, args ...any) error {
		return problem.Newf(problem.Invalid, "", "audit delivery: "+format, args...)
	}
	d := &delivery{logID: req.GetLogId(), cell: cell, node: node, key: req.GetVerifierKey(), records: req.GetRecords()}
	incarnation, ok := strings.CutPrefix(d.logID, logPrefix+"/"+cell+"/"+node+"/")
	if !ok || incarnation == "" || strings.Contains(incarnation, "/") {
		return nil, problem.Newf(problem.Denied, "", "log %.256q is not one of node %s/%s", d.logID, cell, node)
	}
	if origin, err := tlog.OriginOf(d.key); err != nil || origin != d.logID {
		return nil, bad("the verifier key is not that of the log")
	}
	if len(d.records) > maxBatch {
		return nil, bad("%d records are more than %d", len(d.records), maxBatch)
	}
	if req.GetFirstIndex() > 1<<60 || req.GetConsistencyFrom() > 1<<60 {
		return nil, bad("impossible index")
	}
	d.first, d.from = int64(req.GetFirstIndex()), int64(req.GetConsistencyFrom())
	for i, rec := range d.records {
		if len(rec) == 0 || len(rec) > tlog.MaxRecord {
			return nil, bad("record %d has %d bytes", d.first+int64(i), len(rec))
		}
	}
	var err error
	if d.proof, err = tlog.HashesFromBytes(req.GetConsistency()); err != nil {
		return nil, bad("%v", err)
	}
	if len(req.GetCheckpoint()) == 0 {
		if len(d.records) > 0 {
			return nil, bad("records without a checkpoint")
		}
		return d, nil
	}
	if d.cp, err = tlog.OpenCheckpoint(req.GetCheckpoint(), d.key); err != nil {
		return nil, bad("%v", err)
	}
	d.signed = req.GetCheckpoint()
	if len(d.records) > 0 && d.cp.Size != d.end() {
		return nil, bad("the checkpoint is of size %d, the records end at %d", d.cp.Size, d.end())
	}
	return d, nil
}

// intake is one delivery in its transaction, with the log's row locked.
type intake struct {
	tx   *store.Tx
	d    *delivery
	head store.AuditLog
	tree *tree
}

// take stores what is new. An alarm says that the log contradicts what is known of it; nothing was stored then.
func (in *intake) take(ctx context.Context) (alarm string, err error) {
	d := in.d
	if in.head.VerifierKey != d.key {
		return "the log comes with another key than at first", nil
	}
	if alarm, err = in.checkSigned(ctx); alarm != "" || err != nil || d.first > in.head.Size {
		return alarm, err
	}
	known := min(in.head.Size, d.end()) - d.first
	if alarm, err = in.checkKnown(ctx, d.records[:max(0, known)]); alarm != "" || err != nil {
		return alarm, err
	}
	if d.end() <= in.head.Size {
		return "", nil
	}
	fresh := d.records[known:]
	old := in.head
	if err := in.tree.load(ctx, in.tree.rightEdge()); err != nil {
		return "", err
	}
	for _, rec := range fresh {
		in.tree.add(tlog.LeafHash(rec))
	}
	root, err := in.tree.root(ctx, d.cp.Size)
	if err != nil {
		return "", err
	}
	if root != d.cp.Root {
		return fmt.Sprintf("records [%d, %d) do not lead to the checkpoint that the node signed", old.Size, d.end()), nil
	}
	rows := make([]store.AuditRecord, len(fresh))
	for i, rec := range fresh {
		rows[i] = row(old.Size+int64(i), rec)
	}
	if err := in.tx.InsertAuditRecords(ctx, old.No, rows); err != nil {
		return "", fmt.Errorf("insert audit records: %w", err)
	}
	if err := in.tx.PutAuditTiles(ctx, old.No, in.tree.changed()); err != nil {
		return "", fmt.Errorf("write audit tiles: %w", err)
	}
	in.head.Size, in.head.Witnessed, in.head.Checkpoint = d.end(), d.cp.Size, d.signed
	if err := in.tx.SetAuditHead(ctx, old.No, in.head.Size, in.head.Witnessed, in.head.Checkpoint); err != nil {
		return "", fmt.Errorf("write audit head: %w", err)
	}
	return "", nil
}

// checkSigned compares the checkpoint with what is stored: below the stored size by the tree, above it by the proof that
// the node gave, if it is one from the witnessed size.
func (in *intake) checkSigned(ctx context.Context) (alarm string, err error) {
	d := in.d
	if d.signed == nil {
		return "", nil
	}
	if d.cp.Size <= in.head.Size {
		root, err := in.tree.root(ctx, d.cp.Size)
		if err == nil && root != d.cp.Root {
			alarm = fmt.Sprintf("fork: the node signed another tree of size %d than the one that is stored", d.cp.Size)
		}
		return alarm, err
	}
	if d.from == 0 || d.from != in.head.Witnessed {
		return "", nil
	}
	witnessed, err := in.tree.root(ctx, d.from)
	if err != nil {
		return "", err
	}
	if err := tlog.CheckTree(d.proof, d.cp.Size, d.cp.Root, d.from, witnessed); err != nil {
		return fmt.Sprintf("fork: the tree of size %d does not begin with the witnessed one of size %d", d.cp.Size, d.from), nil //nolint:nilerr // the alarm is the answer
	}
	return "", nil
}

// checkKnown compares records that came again with the leaves that are stored.
func (in *intake) checkKnown(ctx context.Context, recs [][]byte) (alarm string, err error) {
	if len(recs) == 0 {
		return "", nil
	}
	at := make([]int64, len(recs))
	for i := range recs {
		at[i] = tlog.StoredHashIndex(0, in.d.first+int64(i))
	}
	leaves, err := in.tree.reader(ctx).ReadHashes(at)
	if err != nil {
		return "", err
	}
	for i, rec := range recs {
		if tlog.LeafHash(rec) != leaves[i] {
			return fmt.Sprintf("changed: record %d is not the one that was delivered before", in.d.first+int64(i)), nil
		}
	}
	return "", nil
}
