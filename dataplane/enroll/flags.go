package enroll

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// Flags are the settings of a join as both programs that have the command take them. A token of "-" is read from standard
// input, which shows it to nobody who lists processes.
func Flags(fs *flag.FlagSet, o *Order) {
	host, _ := os.Hostname() // Without one the defaults below are refused, and the settings asked for.
	host = cmp.Or(host, "localhost")
	fs.StringVar(&o.Token, "token", "", "the join token, or - to read it from standard input")
	fs.StringVar(&o.DataDir, "data-dir", "/var/lib/mcpvault", "the node's disk; DIR/node gets its configuration and identity")
	fs.StringVar(&o.Raft, "raft", net.JoinHostPort(host, "8411"), "where the other nodes reach this one's log, HOST:PORT")
	fs.StringVar(&o.Peer, "peer", net.JoinHostPort(host, "8412"), "where they reach it for the rest, HOST:PORT")
	fs.StringVar(&o.TLS, "tls", "0.0.0.0:443", "where clients are served, ADDRESS:PORT")
	fs.StringVar(&o.Metrics, "metrics", "127.0.0.1:8413", "where probes and scrapers are, ADDRESS:PORT")
	fs.StringVar(&o.TLSCert, "tls-cert", "/etc/mcpvault/tls/mcp.crt", "the certificate that clients see, PEM")
	fs.StringVar(&o.TLSKey, "tls-key", "/etc/mcpvault/tls/mcp.key", "its key, PEM")
	fs.Func("public-url", "what clients type, https://HOST/mcp; may be repeated", func(s string) error {
		o.PublicURLs = append(o.PublicURLs, s)
		return nil
	})
	fs.Func("member", "a node of the cell that the control plane does not know yet, NODE=RAFT,PEER; may be repeated", func(s string) error {
		node, at, _ := strings.Cut(s, "=")
		raft, peer, ok := strings.Cut(at, ",")
		if !ok || node == "" || raft == "" || peer == "" {
			return fmt.Errorf("%q is not NODE=HOST:PORT,HOST:PORT", s)
		}
		o.Members = append(o.Members, cell.Member{Node: node, Raft: raft, Peer: peer})
		return nil
	})
}

// maxTyped bounds what is read of standard input for a token.
const maxTyped = 8 << 10

// Do carries an order out and tells the person what to do next.
func Do(ctx context.Context, o Order, stdin io.Reader, stdout io.Writer) error {
	if o.Token == "-" {
		b, err := io.ReadAll(io.LimitReader(stdin, maxTyped))
		if err != nil {
			return fmt.Errorf("read the join token: %w", err)
		}
		o.Token = string(b)
	}
	if strings.TrimSpace(o.Token) == "" {
		return problem.New(problem.Invalid, "a join token is needed", "make one where you administer the cell: mcpvault cell token create NODE --cell CELL")
	}
	j, err := Join(ctx, o)
	if err != nil {
		return err
	}
	others := "It is the first node of its cell that is known."
	if len(j.Others) > 0 {
		others = "The other nodes: " + strings.Join(j.Others, ", ") + "."
	}
	_, err = fmt.Fprintf(stdout, `This machine is node %s of cell %s. Its SVID is good until %s and renewed each day.
%s
Next:
  mcpvault-cell -config %s -check
  mcpvault-cell -config %s
  mcpvault cell status %s          # where you administer the cell
`, j.Node, j.Cell, j.Until.UTC().Format(time.RFC3339), others, j.Config, j.Config, j.Cell)
	return err
}
