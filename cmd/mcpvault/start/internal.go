package start

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/fault"
	"github.com/mcpvault/mcpvault/controlplane/server"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/daemon"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// orphanGrace is how long a server may take to stop after its parent has gone. Nobody is left to end it by force but itself.
const orphanGrace = 5 * time.Second

// Internal are the roles that `mcpvault dev` starts this program in again. They are no interface for people.
func Internal(a *cli.App) *cobra.Command {
	g := a.Group("internal", "Servers that mcpvault dev starts.", "  mcpvault internal cell --config FILE", roleCommand(a, "controlplane", serve(server.Run)), cellCommand(a), benchPeer(a))
	g.Hidden = true
	return g
}

// role runs a server until ctx ends.
type role func(ctx context.Context, config string, stderr io.Writer) error

func roleCommand(a *cli.App, name string, run role) *cobra.Command {
	var config string
	var parent int
	cmd := a.LongLeaf(name, "Runs the server.", "  mcpvault internal "+name+" --config FILE", cli.Args(),
		func(ctx context.Context, _ []string) error {
			if config == "" {
				return problem.New(problem.Invalid, "--config is required", "it is written by `mcpvault dev`")
			}
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			if parent > 0 {
				go tether(parent, cancel)
			}
			return run(ctx, config, a.World().Stderr)
		})
	cmd.Flags().StringVar(&config, "config", "", "configuration file")
	cmd.Flags().IntVar(&parent, "parent-fd", 0, "file descriptor whose end means that the parent has gone")
	return cmd
}

// cellCommand is the role of a node, which can be broken on purpose.
func cellCommand(a *cli.App) *cobra.Command {
	var faults int
	cmd := roleCommand(a, "cell", serve(func(ctx context.Context, cfg cell.Config, log *slog.Logger) error {
		if faults == 0 {
			return cell.Run(ctx, cfg, log)
		}
		f := os.NewFile(uintptr(faults), "faults")
		socket, err := net.FileConn(f)
		if err != nil {
			return fmt.Errorf("open the socket for faults: %w", err)
		}
		defer func() { _ = socket.Close() }()
		_ = f.Close() // The connection has a copy.
		broken := fault.New()
		if err := broken.Obey(socket); err != nil {
			return err
		}
		return cell.RunOn(ctx, broken.Machine(), cfg, log)
	}))
	cmd.Flags().IntVar(&faults, "fault-fd", 0, "file descriptor of the socket that says what is to be broken")
	return cmd
}

// tether waits for the parent's end of a pipe to close, which happens however the parent ends, and stops the server. It is
// the one goroutine that nobody waits for: it has to outlive a server that does not stop, and ends the process then.
func tether(fd int, stop context.CancelFunc) {
	f := os.NewFile(uintptr(fd), "parent")
	_, _ = io.Copy(io.Discard, f) // Every way for it to end means the same.
	stop()
	time.Sleep(orphanGrace)
	os.Exit(problem.Internal.Exit())
}

// serve runs a server on the configuration in a file.
func serve[C daemon.Config](run func(context.Context, C, *slog.Logger) error) role {
	return func(ctx context.Context, path string, stderr io.Writer) error {
		cfg, log, err := daemon.Load[C](path, stderr)
		if err != nil {
			return err
		}
		return logged(log, run(ctx, cfg, log))
	}
}

// logged leaves the reason of a failure in the log as well, with its cause.
func logged(log *slog.Logger, err error) error {
	if err != nil {
		log.Error("the server ended", "error", err)
	}
	return err
}
