package manage

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot/breakglass"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// signedKill is a kill in a file.
type signedKill struct {
	ID       string `json:"id"`
	Kind     string `json:"kind"`
	Subject  string `json:"subject"`
	TenantID string `json:"tenant_id,omitempty"`
	Reason   string `json:"reason,omitempty"`
	Issued   string `json:"issued"`
	Key      string `json:"key"`
}

func viewSigned(k breakglass.Kill) signedKill {
	kind := "unknown"
	if at := int(k.Body.GetKind()) - 1; at >= 0 && at < len(killKinds()) {
		kind = killKinds()[at]
	}
	return signedKill{
		k.Body.GetId(), kind, k.Body.GetSubject(), k.Body.GetTenantId(), k.Body.GetReason(), output.Time(k.Body.GetIssuedMs()),
		strings.Join(seal.Signers(k.Envelope), ","),
	}
}

func signedColumns() []output.Column[signedKill] {
	return []output.Column[signedKill]{
		{Head: "ID", Cell: func(v signedKill) string { return v.ID }},
		{Head: "KIND", Cell: func(v signedKill) string { return v.Kind }},
		{Head: "SUBJECT", Cell: func(v signedKill) string { return v.Subject }},
		{Head: "ORG ID", Cell: func(v signedKill) string {
			if v.TenantID == "" {
				return "everywhere"
			}
			return v.TenantID
		}},
		{Head: "ISSUED", Cell: func(v signedKill) string { return v.Issued }},
		{Head: "KEY", Cell: func(v signedKill) string { return v.Key }},
		{Head: "REASON", Cell: func(v signedKill) string { return v.Reason }},
	}
}

func killSign(a *cli.App) *cobra.Command {
	var key, tenantID, reason, out string
	var everywhere bool
	cmd := a.Leaf("sign KIND SUBJECT", "Signs a kill with a break-glass key, without any network, into a file. A file that is there gets one more.",
		`  mcpvault kill sign user mallory --key glass.key --tenant-id 0197f3c2-5d7e-7c3b-9a51-2f6f1d1f8a10 --out mallory.kills
  mcpvault kill sign node eu/n3 --key glass.key --everywhere --out n3.kills`, cli.Args("KIND", "SUBJECT"),
		func(_ context.Context, args []string) error {
			at := slices.Index(killKinds(), args[0])
			switch {
			case at < 0:
				return problem.Newf(problem.Invalid, "use "+strings.Join(killKinds(), ", "), "%q cannot be killed", args[0])
			case key == "" || out == "":
				return problem.New(problem.Invalid, "a key to sign with and a file to write are needed", "give --key FILE and --out FILE")
			case (tenantID == "") == !everywhere:
				return problem.New(problem.Invalid, "whose subject it is has to be said", "give --tenant-id ID (see `mcpvault org list -o json`), or --everywhere")
			}
			signer, err := seal.ReadKey(key)
			if err != nil {
				return problem.New(problem.Invalid, "the key cannot be used: "+err.Error(), "give the break-glass key's file, with mode 0600")
			}
			now := time.Now()
			env, err := seal.SignKill(&snapshotv1.Kill{
				Id: ulid.MustNew(ulid.Timestamp(now), rand.Reader).String(), Kind: snapshotv1.KillKind(at + 1), TenantId: tenantID, Subject: args[1],
				IssuedMs: now.UnixMilli(), Reason: reason,
			}, signer)
			if err != nil {
				return problem.New(problem.Invalid, "the kill cannot be signed: "+err.Error(), "shorten the subject and the reason")
			}
			n, err := appendKill(out, env)
			if err != nil {
				return err
			}
			a.Notef("%s holds %d kills; carry it to the cell, or hand it to the control plane with `mcpvault kill import %s`", out, n, out)
			return nil
		})
	cmd.Flags().StringVar(&key, "key", "", "file of the break-glass key")
	cmd.Flags().StringVar(&tenantID, "tenant-id", "", "id of the organisation whose subject it is")
	cmd.Flags().BoolVar(&everywhere, "everywhere", false, "in every organisation")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the record")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	return cmd
}

// appendKill adds a kill to a file of them and says how many it has.
func appendKill(path string, env []byte) (n int, err error) {
	var all [][]byte
	have, err := os.ReadFile(path)
	switch {
	case err == nil:
		if all, err = breakglass.Parse(have); err != nil {
			return 0, problem.New(problem.Conflict, path+" is there and is no file of kills: "+err.Error(), "write another one")
		}
	case !errors.Is(err, os.ErrNotExist):
		return 0, problem.New(problem.Invalid, "the file cannot be read: "+err.Error(), "check --out")
	}
	all = append(all, env)
	b, err := breakglass.Encode(all...)
	if err == nil {
		err = os.WriteFile(path, b, 0o600) //nolint:gosec // the person at the keyboard names the file
	}
	if err != nil {
		return 0, problem.New(problem.Invalid, "the file cannot be written: "+err.Error(), "check --out")
	}
	return len(all), nil
}

func killInspect(a *cli.App) *cobra.Command {
	var roots string
	cmd := a.Leaf("inspect FILE", "Checks a file of kills against root keys that you have, and shows what is in it.",
		"  mcpvault kill inspect mallory.kills --roots roots.pb", cli.Args("FILE"),
		func(_ context.Context, args []string) error {
			kills, err := openKills(a, args[0], roots)
			if err != nil {
				return err
			}
			a.Notef("verified: every kill is signed by a kill key of these roots")
			return cli.PrintList(a, output.Map(kills, viewSigned), signedColumns()...)
		})
	cmd.Flags().StringVar(&roots, "roots", "", "file of root keys; the context's when not given")
	return cmd
}

func openKills(a *cli.App, path, roots string) ([]breakglass.Kill, error) {
	raw, err := a.Roots(roots, true)
	if err != nil {
		return nil, err
	}
	trust, err := proof.Trust(raw)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, problem.New(problem.NotFound, "the file cannot be read: "+err.Error(), "check its name")
	}
	defer func() { _ = f.Close() }()
	kills, err := breakglass.Read(f, trust)
	if err != nil {
		return nil, problem.New(problem.Denied, path+" is refused whole: "+err.Error(), "have it signed again with a kill key that the roots name: `mcpvault trust show`")
	}
	return kills, nil
}

func killImport(a *cli.App) *cobra.Command {
	var roots string
	cmd := a.AdminLeaf("import FILE", "Hands kills that were signed offline to the control plane, which sends them to every cell.",
		"  mcpvault kill import mallory.kills", cli.Args("FILE"),
		func(ctx context.Context, c *admin.Client, tenant string, args []string) error {
			kills, err := openKills(a, args[0], roots)
			if err != nil {
				return err
			}
			req := &adminv1.ImportKillsRequest{Tenant: tenant}
			for _, k := range kills {
				req.Envelopes = append(req.Envelopes, k.Envelope)
			}
			resp, err := c.Access.ImportKills(ctx, req)
			if err != nil {
				return err
			}
			a.Notef("%d of %d kills are new", len(resp.GetIds()), len(kills))
			return cli.PrintList(a, output.Map(kills, viewSigned), signedColumns()...)
		})
	cmd.Flags().StringVar(&roots, "roots", "", "file of root keys; the context's when not given")
	return cmd
}

// killDeliver puts a file where a node of a cell that is cut off looks for it, and waits for its verdict.
func killDeliver(a *cli.App) *cobra.Command {
	var dataDir string
	wait := 5 * time.Second
	cmd := a.Leaf("deliver FILE", "On a node's machine, hands it kills that were signed offline; its peers hear of them from it. No control plane is needed.",
		"  mcpvault kill deliver mallory.kills --data-dir /var/lib/mcpvault", cli.Args("FILE"),
		func(ctx context.Context, args []string) error {
			raw, err := os.ReadFile(args[0])
			if err != nil {
				return problem.New(problem.NotFound, "the file cannot be read: "+err.Error(), "check its name")
			}
			if _, err := breakglass.Parse(raw); err != nil {
				return problem.New(problem.Invalid, args[0]+" is no file of kills: "+err.Error(), "make one with `mcpvault kill sign`")
			}
			name := filepath.Join(dataDir, "kills", ulid.Make().String())
			err = os.WriteFile(name, raw, 0o600) //nolint:gosec // the person at the keyboard names the directory
			if err == nil {
				err = os.Rename(name, name+".kills")
			}
			if err != nil {
				return problem.New(problem.NotFound, "it cannot be put there: "+err.Error(), "give the node's own data_dir with --data-dir, as the user that it runs as")
			}
			return awaitDelivered(ctx, a, name+".kills", wait)
		})
	cmd.Flags().StringVar(&dataDir, "data-dir", "", "the node's data_dir")
	cmd.Flags().DurationVar(&wait, "wait", wait, "how long to wait for the node")
	return cmd
}

func awaitDelivered(ctx context.Context, a *cli.App, path string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(path + ".taken"); err == nil {
			a.Notef("in force on this node; it tells its peers")
			return nil
		}
		if _, err := os.Stat(path + ".refused"); err == nil {
			return problem.New(problem.Denied, "the node refuses the file whole", "its log says why; `mcpvault kill inspect FILE --roots FILE` checks it against the node's roots")
		}
		select {
		case <-ctx.Done():
			return problem.Newf(problem.Timeout, "is it running? It takes the file when it starts", "the node has not looked at %s", path)
		case <-tick.C:
		}
	}
}
