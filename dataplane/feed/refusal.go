package feed

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const kindDelta = "a delta"

// kindOf names an event, so that what is said of it can be taken back when one of its kind is good again.
func kindOf(ev *cellv1.WatchResponse) string {
	switch ev.GetEvent().(type) {
	case *cellv1.WatchResponse_Update:
		return "an update"
	case *cellv1.WatchResponse_Heartbeat:
		return "a heartbeat"
	case *cellv1.WatchResponse_Kill:
		return "a kill"
	case *cellv1.WatchResponse_Delta:
		return kindDelta
	}
	return "an unknown event"
}

// note keeps why an event was refused until one of its kind is taken: what cannot be answered with a generation's number is
// reported as a problem of this node.
func (f *Feed) note(ctx context.Context, kind string, err error) {
	f.connMu.Lock()
	if f.refusals == nil {
		f.refusals = map[string]error{}
	}
	if err == nil {
		delete(f.refusals, kind)
	} else {
		f.refusals[kind] = err
	}
	f.connMu.Unlock()
	if err != nil {
		f.metrics.unproved.Inc()
		f.log.ErrorContext(ctx, "refused what the control plane sent", "kind", kind, "err", err)
	}
}

// refusal is what was refused last, of each kind; nil when everything was taken. It needs connMu.
func (f *Feed) refusal() error {
	var all []error
	for _, kind := range slices.Sorted(maps.Keys(f.refusals)) {
		all = append(all, fmt.Errorf("refused %s of the control plane, the last good one stays: %w", kind, f.refusals[kind]))
	}
	return errors.Join(all...)
}
