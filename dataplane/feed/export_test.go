package feed

import (
	"context"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Handle is what happens to each event of the stream.
func (f *Feed) Handle(ctx context.Context, ev *cellv1.WatchResponse) { f.handle(ctx, ev) }
