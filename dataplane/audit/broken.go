package audit

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/broken"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// misdo loses records, or writes them when it is too late, in builds that are made to do so.
func (a *Audit) misdo(ctx context.Context, rec *auditv1.Record, what string) (skipped bool) {
	switch {
	case broken.Is("drop-" + what):
		return rec.GetTimeMs()%7 == 0
	case broken.Is("late-" + what):
		ctx, late := context.WithoutCancel(ctx), proto.CloneOf(rec)
		time.AfterFunc(300*time.Millisecond, func() { _ = a.commit(ctx, late) })
		return true
	}
	return false
}
