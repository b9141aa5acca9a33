package observe

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/tlog/check"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// maxBundle bounds a saved snapshot.
const maxBundle = 512 << 20

type verifiedSnapshot struct {
	Snapshot string `json:"snapshot"`
	Org      string `json:"org"`
	Digest   string `json:"digest"`
	State    string `json:"state_hash"`
	Deltas   int    `json:"deltas"`
	Roots    uint64 `json:"roots_version"`
	Servers  int    `json:"servers"`
	Tools    int    `json:"tools"`
	Until    string `json:"not_after"`
	InForce  bool   `json:"in_force"`
}

func verifySnapshot(a *cli.App) *cobra.Command {
	var roots, file, save string
	cmd := a.Leaf("verify [GENERATION]", "Checks a generation against root keys that you have: signature, content, and that a cell can serve from it.",
		`  mcpvault snapshot verify
  mcpvault snapshot verify 4 --save acme-4.snapshot
  mcpvault snapshot verify --file acme-4.snapshot --roots roots.pb     # with no network at all`, cli.Args("[GENERATION]"),
		func(ctx context.Context, args []string) error {
			n, err := generationArg(args)
			if err != nil {
				return err
			}
			known, err := a.Roots(roots, file != "")
			if err != nil {
				return err
			}
			g, err := fetchGeneration(ctx, a, n, file)
			if err != nil {
				return err
			}
			s, err := proof.CheckSnapshot(g, known, time.Now())
			if err != nil {
				return err
			}
			if err := saveBundle(save, g); err != nil {
				return err
			}
			if s.InForce != nil {
				a.Warnf("it is genuine but not in force: %v", s.InForce)
			}
			return printVerified(a, s)
		})
	cmd.Flags().StringVar(&roots, "roots", "", "file of root keys; the context's when not given")
	cmd.Flags().StringVar(&file, "file", "", "a snapshot that was saved before, instead of asking the control plane")
	cmd.Flags().StringVar(&save, "save", "", "file to keep the verified snapshot in")
	return cmd
}

func printVerified(a *cli.App, s *proof.Snapshot) error {
	h := s.Head
	v := verifiedSnapshot{
		s.Version.String(), h.GetTenant(), s.Digest.String(), s.State.String(), s.Deltas, s.Roots,
		s.Servers, s.Tools, output.Time(h.GetNotAfterMs()), s.InForce == nil,
	}
	a.Notef("verified: signed by a known key, and every part is what was signed")
	return cli.Print(a, v,
		output.Column[verifiedSnapshot]{Head: "SNAPSHOT", Cell: func(v verifiedSnapshot) string { return v.Snapshot }},
		output.Column[verifiedSnapshot]{Head: "ORG", Cell: func(v verifiedSnapshot) string { return v.Org }},
		output.Column[verifiedSnapshot]{Head: "DIGEST", Cell: func(v verifiedSnapshot) string { return v.Digest }},
		output.Column[verifiedSnapshot]{Head: "CONTENT", Cell: func(v verifiedSnapshot) string { return fmt.Sprintf("%d servers, %d tools", v.Servers, v.Tools) }},
		output.Column[verifiedSnapshot]{Head: "DELTAS", Cell: func(v verifiedSnapshot) string { return fmt.Sprint(v.Deltas) }},
		output.Column[verifiedSnapshot]{Head: "VALID UNTIL", Cell: func(v verifiedSnapshot) string { return v.Until }},
		output.Column[verifiedSnapshot]{Head: "STATE", Cell: func(v verifiedSnapshot) string { return v.State }, Wide: true},
		output.Column[verifiedSnapshot]{Head: "ROOTS", Cell: func(v verifiedSnapshot) string { return fmt.Sprint(v.Roots) }, Wide: true})
}

func readBounded(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

func fetchGeneration(ctx context.Context, a *cli.App, n uint64, file string) (*adminv1.GetGenerationResponse, error) {
	if file != "" {
		raw, err := readBounded(file, maxBundle)
		if err != nil {
			return nil, problem.New(problem.NotFound, "the snapshot cannot be read: "+err.Error(), "check --file")
		}
		g := &adminv1.GetGenerationResponse{}
		if err := proto.Unmarshal(raw, g); err != nil {
			return nil, problem.Newf(problem.Invalid, "save one with `mcpvault snapshot verify --save FILE`", "%s is not a saved snapshot", file)
		}
		return g, nil
	}
	client, c, err := a.Admin()
	if err != nil {
		return nil, err
	}
	return client.Snapshots.GetGeneration(ctx, &adminv1.GetGenerationRequest{Tenant: c.Tenant, Generation: n, IncludeShards: true})
}

func saveBundle(path string, g *adminv1.GetGenerationResponse) error {
	if path == "" {
		return nil
	}
	raw, err := proto.Marshal(g)
	if err != nil {
		return fmt.Errorf("save the snapshot: %w", err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return fmt.Errorf("save the snapshot: %w", err)
	}
	return nil
}

type verifiedLog struct {
	Log     string `json:"log"`
	OK      bool   `json:"ok"`
	Records int64  `json:"records"`
	Signed  int64  `json:"signed"`
	Root    string `json:"root"`
	Fault   string `json:"fault,omitempty"`
}

func auditVerify(a *cli.App) *cobra.Command {
	var only, dir string
	cmd := a.Leaf("verify", "Reads every log in full, computes its tree again and compares it with the signed checkpoints.",
		`  mcpvault audit verify
  mcpvault audit verify --log mcpvault/audit/local/n1/5f3a9c -o json
  mcpvault audit verify --dir /var/lib/mcpvault/audit      # a node's own log, without any server`, cli.Args(),
		func(ctx context.Context, _ []string) error {
			if dir != "" {
				return verifyDir(a, dir)
			}
			client, _, err := a.Admin()
			if err != nil {
				return err
			}
			resp, err := client.Audit.ListLogs(ctx, &adminv1.ListLogsRequest{})
			if err != nil {
				return err
			}
			var logs []check.Log
			alarms := map[string]string{}
			for _, l := range resp.GetLogs() {
				if only == "" || l.GetLogId() == only {
					logs = append(logs, logOf(l))
					alarms[l.GetLogId()] = l.GetAlarm()
				}
			}
			if only != "" && len(logs) == 0 {
				return problem.Newf(problem.NotFound, "see `mcpvault audit verify` without --log", "log %q does not exist", only)
			}
			reports, err := check.Online(ctx, logs, nil, func(ctx context.Context, id string, first int64) ([][]byte, error) {
				page, err := client.Audit.ReadLog(ctx, &adminv1.ReadLogRequest{LogId: id, First: uint64(first), Limit: 5000})
				return page.GetLeaves(), err
			})
			if err != nil {
				return err
			}
			return printReports(a, reports, alarms)
		})
	cmd.Flags().StringVar(&only, "log", "", "only the log with this id")
	cmd.Flags().StringVar(&dir, "dir", "", "a node's audit directory, instead of what the control plane has")
	return cmd
}

// verifyDir proves a log where a node wrote it. The key is the directory's own: against somebody who wrote it all anew only
// a checkpoint that was witnessed elsewhere helps, which is what verifying the control plane's copy compares with.
func verifyDir(a *cli.App, dir string) error {
	r, err := check.Dir(dir, check.Options{})
	if err != nil {
		return problem.New(problem.NotFound, "the log cannot be read: "+err.Error(), "name a node's audit directory with --dir")
	}
	if r.OK() && r.Torn > 0 {
		a.Notef("%d bytes at the end were never acknowledged and are no records", r.Torn)
	}
	return printReports(a, []check.Report{r}, nil)
}

func logOf(l *adminv1.AuditLog) check.Log {
	log := check.Log{Origin: l.GetLogId(), VerifierKey: l.GetVerifierKey()}
	if len(l.GetCheckpoint()) > 0 {
		log.Checkpoints = [][]byte{l.GetCheckpoint()}
	}
	return log
}

func printReports(a *cli.App, reports []check.Report, alarms map[string]string) error {
	faults := 0
	rows := output.Map(reports, func(r check.Report) verifiedLog {
		v := verifiedLog{r.Origin, r.OK(), r.Size, r.Signed, fmt.Sprintf("%x", r.Root[:]), ""}
		if !r.OK() {
			v.Fault = r.Fault.Error()
		}
		if alarm := alarms[r.Origin]; alarm != "" {
			v.OK, v.Fault = false, strings.TrimPrefix(v.Fault+"; "+alarm, "; ")
		}
		if !v.OK {
			faults++
		}
		return v
	})
	err := cli.PrintList(a, rows,
		output.Column[verifiedLog]{Head: "LOG", Cell: func(v verifiedLog) string { return v.Log }},
		output.Column[verifiedLog]{Head: "INTACT", Cell: func(v verifiedLog) string { return output.YesNo(v.OK) }},
		output.Column[verifiedLog]{Head: "RECORDS", Cell: func(v verifiedLog) string { return fmt.Sprint(v.Records) }},
		output.Column[verifiedLog]{Head: "SIGNED", Cell: func(v verifiedLog) string { return fmt.Sprint(v.Signed) }},
		output.Column[verifiedLog]{Head: "FAULT", Cell: func(v verifiedLog) string { return v.Fault }},
		output.Column[verifiedLog]{Head: "ROOT", Cell: func(v verifiedLog) string { return v.Root }, Wide: true})
	if err == nil && faults > 0 {
		return problem.Newf(problem.Internal, "keep the nodes' audit directories as they are, and compare them with `mcpvault audit verify -o json`",
			"%d of %d logs do not verify", faults, len(reports))
	}
	return err
}
