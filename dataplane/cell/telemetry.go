package cell

import (
	"context"
	"os"
	"time"

	"github.com/mcpvault/mcpvault/kit/run"
	"github.com/mcpvault/mcpvault/kit/tele"
)

// lastExport bounds the wait for a collector at the end.
const lastExport = 2 * time.Second

// openTelemetry starts the export of spans and metrics, where it is wanted. A collector that cannot be reached holds nothing
// up.
func (n *Node) openTelemetry(ctx context.Context) error {
	c := tele.TraceConfig{Service: "mcpvault-cell", Version: run.Version().Version, Getenv: os.Getenv, Endpoint: n.cfg.OTLPEndpoint}
	var err error
	if n.traces, err = tele.NewTraces(ctx, c); err != nil {
		return err
	}
	n.onClose(ending(n.traces.Shutdown))
	stop, err := tele.Push(ctx, c, n.reg)
	if err != nil {
		return err
	}
	n.onClose(ending(stop))
	return nil
}

func ending(stop func(context.Context) error) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), lastExport)
		defer cancel()
		return stop(ctx)
	}
}
