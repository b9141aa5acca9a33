// Peers measures MCPVault's decision beside engines that others use: cedar-go on the least policies that anybody could
// give it, cedar-go on the whole policy, and a prepared query of Open Policy Agent. All run in one process on one world,
// in rounds that take turns, and every engine has to give the same answer to every question before it is timed.
//
// It is a module of its own, so that the product links no OPA. From the top of the repository:
//
//	make -s bench-authz USERS=1000000
//
// prints one JSON object: the product's own figures, which `mcpvault bench authz -o json` gives on any machine, and the
// ratios.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/mcpvault/mcpvault/bench/authz"
)

// report is what is printed.
type report struct {
	*authz.Figures
	*ratios
}

func main() {
	if err := run(context.Background(), os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("peers", flag.ContinueOnError)
	flags.SetOutput(stderr)
	users := flags.Int("users", authz.TenantUsers, "users of the product's own figures: 10000, 100000 or 1000000; the ratios are of 10000")
	if err := flags.Parse(args); err != nil {
		return err
	}
	note := func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	figures, err := authz.Run(authz.Config{Users: *users, Note: note})
	if err != nil {
		return err
	}
	beside, err := compare(ctx, note)
	if err != nil {
		return err
	}
	for _, r := range append(figures.Rows(), beside.rows()...) {
		note("%-42s %14s   %s", r.What, r.Value, r.Bound)
	}
	out := json.NewEncoder(stdout)
	out.SetIndent("", "  ")
	return out.Encode(report{figures, beside})
}
