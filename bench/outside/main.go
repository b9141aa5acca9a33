// Command outside holds the gateway to programs that were not written here: the npm TypeScript clients, old and new, and
// the MCP conformance suite of the protocol's own authors, run through a real cell.
//
//	go run ./bench/outside clients      TypeScript clients against mcpvault dev's demo servers
//	go run ./bench/outside conformance  the suite against its own upstream, through the cell
//	go run ./bench/outside all
//
// It installs what it needs, pinned, into a cache folder, needs npm, and ends only what it started.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "outside:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("outside", flag.ContinueOnError)
	cache := fs.String("cache", defaultCache(), "folder for what is installed")
	binary := fs.String("mcpvault", "bin/mcpvault", "the binary to test")
	floor := fs.Int("floor", 110, "fewest conformance scenarios that must pass")
	url := fs.String("url", "", "with conformance: a gateway that is already running, with -token")
	token := fs.String("token", "", "bearer token for -url")
	limit := fs.Duration("timeout", 10*time.Minute, "bound on the whole run")
	if len(args) == 0 {
		return errors.New("say what to run: clients, conformance or all")
	}
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	kit, err := install(ctx, *cache)
	if err != nil {
		return fmt.Errorf("install: %w", err)
	}
	bin, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	switch args[0] {
	case "clients":
		return clients(ctx, kit, bin)
	case "conformance":
		if *url != "" {
			return suite(ctx, kit, *url, *token, *floor)
		}
		return conformance(ctx, kit, bin, *floor)
	case "upstream":
		up, err := startUpstream(ctx, kit)
		if err != nil {
			return err
		}
		defer up.stop()
		fmt.Println(up.url)
		<-ctx.Done()
		return nil
	case "all":
		return errors.Join(clients(ctx, kit, bin), conformance(ctx, kit, bin, *floor))
	}
	return fmt.Errorf("unknown command %q: clients, conformance, upstream or all", args[0])
}

func defaultCache() string {
	if d := os.Getenv("MCPVAULT_OUTSIDE_CACHE"); d != "" {
		return d
	}
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "mcpvault-outside")
	}
	return filepath.Join(os.TempDir(), "mcpvault-outside")
}
