// Command outside holds the gateway to programs that were not written here: the npm TypeScript clients, old and new, the MCP
// Inspector, Claude Code, the Go clients, servers from npm and from Go, and the MCP conformance suite of the protocol's own
// authors, run through a real cell.
//
//	go run ./bench/outside clients      clients against mcpvault dev's demo servers
//	go run ./bench/outside conformance  the suite against its own upstream through the cell; -times N runs it so often,
//	                                    -control-plane-down and -leader-kill run it again under that drill
//	go run ./bench/outside client-leg   the suite's servers behind the cell, compared with asking them directly
//	go run ./bench/outside oauth        the TypeScript SDK's own login, at a real issuer, for a cell
//	go run ./bench/outside servers      servers from npm, over HTTP, SSE and stdio, behind the cell
//	go run ./bench/outside smuggle      bodies that two readers could read differently, against both TypeScript SDKs
//	go run ./bench/outside tools        the MCP Inspector's CLI and Claude Code
//	go run ./bench/outside all          clients and the server leg: what every change must pass
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
	limit := fs.Duration("timeout", 30*time.Minute, "bound on the whole run")
	var want drills
	fs.IntVar(&want.times, "times", 1, "with conformance: runs of the server leg in a row, each with a new cell")
	fs.BoolVar(&want.controlPlaneDown, "control-plane-down", false, "with conformance: once more with the control plane killed before")
	fs.BoolVar(&want.leaderKill, "leader-kill", false, "with conformance: once more through a follower, with the Raft leader killed in each revision")
	if len(args) == 0 {
		return errUsage
	}
	if args[0] == "via" {
		return via(ctx, args[1:])
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
	sum := &summary{}
	defer sum.print()
	server := func() error { return conformance(ctx, sum, kit, bin, *floor, want) }
	client := func() error { return sum.run("client leg", func() error { return clientLeg(ctx, kit, bin) }) }
	login := func() error { return sum.run("oauth", func() error { return oauth(ctx, kit, bin) }) }
	people := func() error { return sum.run("clients", func() error { return clients(ctx, kit, bin) }) }
	npm := func() error { return sum.run("servers from npm", func() error { return servers(ctx, kit, bin) }) }
	large := func() error {
		return sum.run("Inspector and Claude Code", func() error { return tools(ctx, kit, bin) })
	}
	switch args[0] {
	case "smuggle":
		return sum.run("smuggled bodies", func() error { return smuggle(ctx, kit, bin, smuggledBodies) })
	case "clients":
		return people()
	case "conformance":
		if *url != "" {
			return sum.run("server leg", func() error { return suite(ctx, kit, *floor, at(*url, *token)) })
		}
		return errors.Join(server(), client(), npm(), large())
	case "client-leg":
		return client()
	case "oauth":
		return login()
	case "tools":
		return large()
	case "servers":
		return npm()
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
		return errors.Join(people(), login(), server())
	}
	return fmt.Errorf("unknown command %q; %w", args[0], errUsage)
}

var errUsage = errors.New("say what to run: clients, conformance, client-leg, oauth, servers, smuggle, tools, upstream or all")

// smuggledBodies is where the bodies are, as the pipeline's own test reads them.
const smuggledBodies = "dataplane/pep/testdata/smuggle.txt"

func defaultCache() string {
	if d := os.Getenv("MCPVAULT_OUTSIDE_CACHE"); d != "" {
		return d
	}
	if d, err := os.UserCacheDir(); err == nil {
		return filepath.Join(d, "mcpvault-outside")
	}
	return filepath.Join(os.TempDir(), "mcpvault-outside")
}
