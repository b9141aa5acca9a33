package consensus

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// newRaftLogger passes Raft's lines on to slog. An error there is most often a peer that is away, which the cell is
// built for: it is a warning here.
func newRaftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "raft", Level: hclog.Debug, Output: io.Discard})
	l.RegisterSink(logSink{log})
	return l
}

type logSink struct{ log *slog.Logger }

// Accept takes one line with its key-value pairs.
func (s logSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	switch {
	case level >= hclog.Warn:
		to = slog.LevelWarn
	case level == hclog.Info:
		to = slog.LevelInfo
	}
	if !s.log.Enabled(context.Background(), to) {
		return
	}
	attrs := make([]any, 0, len(args))
	for i := 0; i+1 < len(args); i += 2 {
		attrs = append(attrs, slog.Any(fmt.Sprint(args[i]), fmt.Sprint(args[i+1])))
	}
	s.log.Log(context.Background(), to, "raft: "+msg, attrs...)
}
