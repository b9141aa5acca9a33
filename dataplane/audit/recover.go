package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/broken"
	"github.com/mcpvault/mcpvault/kit/tlog"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// The codes of the records that this package writes by itself.
const (
	codeUnknown = "MV1004W" // an intent whose outcome nobody saw
	codeStart   = "MV9001N" // the node took up its log
	codeMark    = "MV9002N" // says from where on intents may be open
)

// markEvery is how many records lie between two marks. It bounds what recovery reads.
const markEvery = 16384

// settled begins the detail of a start or a mark: intents below the index have their outcome.
const settled = "settled_below="

// openIntents are the intents without an outcome, each with an index that is not above its own.
type openIntents struct {
	mu sync.Mutex
	at map[string]int64
}

func (o *openIntents) open(id string, size func() int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at[id] = size()
}

func (o *openIntents) close(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.at, id)
}

// oldest is the index below which every intent is settled.
func (o *openIntents) oldest(size func() int64) int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := size()
	for _, at := range o.at {
		n = min(n, at)
	}
	return n
}

// mark writes a mark now and then.
func (a *Audit) mark() {
	taken, last := a.taken.Load(), a.marked.Load()
	if taken-last < markEvery || !a.marked.CompareAndSwap(last, taken) {
		return
	}
	// A mark that cannot be kept costs the next recovery some reading.
	_ = a.system(codeMark, "mark", a.open.oldest(a.log.Size))
}

// system appends a record about the node itself.
func (a *Audit) system(code, reason string, below int64) error {
	return a.encode(&auditv1.Record{
		Id: a.NewID(), Kind: auditv1.RecordKind_RECORD_KIND_SYSTEM, Code: code, Reason: reason, Detail: settled + strconv.FormatInt(below, 10),
	}, func(b []byte) error {
		_, err := a.log.Append(b)
		return err
	})
}

// Recover gives every intent that has no outcome an UNKNOWN_OUTCOME record: the process ended while the call was under way,
// and whether it took effect only its upstream knows. It is called once, before the first request. The error means that the
// log cannot be read; a disk that takes no records is none, because the records have their place in memory.
func (a *Audit) Recover(ctx context.Context) error {
	h := a.cfg.Log
	from, err := settledBelow(ctx, h)
	if err != nil {
		return fmt.Errorf("recover audit: %w", err)
	}
	open, err := openSince(ctx, h, from)
	if err != nil {
		return fmt.Errorf("recover audit: %w", err)
	}
	if broken.Is("unmarked-unknown") {
		clear(open)
	}
	for _, index := range slices.Sorted(maps.Values(open)) {
		if err := a.unknown(h, index); err != nil {
			return fmt.Errorf("recover audit: intent at %d: %w", index, err)
		}
	}
	if err := a.system(codeStart, "start", a.log.Size()); err != nil {
		return fmt.Errorf("recover audit: %w", err)
	}
	if err := a.log.Sync(ctx); err != nil && !errors.Is(err, tlog.ErrUnavailable) {
		return fmt.Errorf("recover audit: %w", err)
	}
	if len(open) > 0 {
		a.cfg.Logger.Warn("calls were under way when the node ended: their outcome is unknown", slog.Int("calls", len(open)))
	}
	return nil
}

// unknown writes the end of the intent at the index.
func (a *Audit) unknown(h *tlog.Log, index int64) error {
	recs, err := h.Read(index, 1, 1)
	if err != nil {
		return err
	}
	var rec auditv1.Record
	if err := proto.Unmarshal(recs[0], &rec); err != nil {
		return err
	}
	rec.IntentId, rec.Id = rec.GetId(), a.NewID()
	rec.Kind, rec.Code, rec.Outcome = auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME, codeUnknown, "unknown"
	rec.TimeMs, rec.Detail = a.cfg.Now().UnixMilli(), "the node ended before the outcome was recorded"
	return a.encode(&rec, func(b []byte) error {
		_, err := a.log.Append(b)
		return err
	})
}

// page is how many records recovery reads at once.
const page = 1024

// settledBelow looks for the newest start or mark, from the end of the log.
func settledBelow(ctx context.Context, h *tlog.Log) (int64, error) {
	first := h.First()
	for end := h.Durable(); end > first; {
		from := max(first, end-page)
		below := int64(-1)
		err := scan(ctx, h, from, end, func(_ int64, s summary) {
			if s.kind == auditv1.RecordKind_RECORD_KIND_SYSTEM && s.below >= 0 {
				below = s.below
			}
		})
		if err != nil || below >= 0 {
			return max(below, first), err
		}
		end = from
	}
	return first, nil
}

// openSince returns the intents from an index on that have no outcome, with their indexes.
func openSince(ctx context.Context, h *tlog.Log, from int64) (map[string]int64, error) {
	open := map[string]int64{}
	err := scan(ctx, h, from, h.Durable(), func(index int64, s summary) {
		switch s.kind {
		case auditv1.RecordKind_RECORD_KIND_INTENT:
			open[s.id] = index
		case auditv1.RecordKind_RECORD_KIND_OUTCOME, auditv1.RecordKind_RECORD_KIND_UNKNOWN_OUTCOME:
			delete(open, s.intent)
		case auditv1.RecordKind_RECORD_KIND_CALL:
			delete(open, s.id) // the intent was refused before it was forwarded
		default: // the others settle nothing
		}
	})
	return open, err
}

// scan shows the records [from, end).
func scan(ctx context.Context, h *tlog.Log, from, end int64, see func(int64, summary)) error {
	for from < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		recs, err := h.Read(from, int(min(page, end-from)), 4<<20)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			if s, ok := summarise(rec); ok {
				see(from, s)
			}
			from++
		}
	}
	return nil
}

// summary is what recovery needs of a record.
type summary struct {
	kind       auditv1.RecordKind
	id, intent string
	below      int64 // -1 when it is no mark
}

// summarise reads the few fields without the rest; false when it is no record.
func summarise(b []byte) (summary, bool) {
	s := summary{below: -1}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return s, false
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return s, false
		}
		value := b[:n]
		b = b[n:]
		if num == 2 && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(value)
			s.kind = auditv1.RecordKind(v)
		}
		if typ != protowire.BytesType {
			continue
		}
		text, _ := protowire.ConsumeString(value)
		switch num {
		case 1:
			s.id = text
		case 30:
			s.intent = text
		case 31:
			if rest, ok := strings.CutPrefix(text, settled); ok {
				if v, err := strconv.ParseInt(rest, 10, 64); err == nil && v >= 0 {
					s.below = v
				}
			}
		}
	}
	return s, true
}
