package machines

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

type caView struct {
	TrustDomain string `json:"trust_domain"`
	Until       string `json:"not_after"`
	// Bundle are the SHA-256 of the certificates that are believed.
	Bundle []string `json:"bundle_sha256"`
}

// Authorities are the commands of `trust ca`: they work on files alone.
func Authorities(a *cli.App) *cobra.Command {
	var domain string
	create := a.Leaf("create DIR", "Makes the root of a trust domain, to be kept off every machine with a network: ca.key signs those that sign SVIDs.",
		"  mcpvault trust ca create /media/usb/ca --trust-domain mcpvault.example", cli.Args("DIR"),
		func(_ context.Context, args []string) error {
			if domain == "" {
				return problem.New(problem.Invalid, "--trust-domain is required", "it is the trust_domain of nodes and control plane, for example mcpvault.example")
			}
			ca, err := svid.CreateRoot(args[0], domain)
			return printCA(a, args[0], ca, err)
		})
	create.Flags().StringVar(&domain, "trust-domain", "", "the SPIFFE trust domain of nodes and control plane")
	var root string
	days := 365
	issue := a.Leaf("issue DIR", "Makes what a control plane signs SVIDs with (its ca_dir): an authority below the root, and the bundle that is believed.",
		"  mcpvault trust ca issue /var/lib/mcpvault/ca --root /media/usb/ca --days 365", cli.Args("DIR"),
		func(_ context.Context, args []string) error {
			if root == "" {
				return problem.New(problem.Invalid, "--root is required", "make one: mcpvault trust ca create DIR --trust-domain NAME")
			}
			above, err := svid.LoadCA(root)
			if err != nil {
				return problem.Newf(problem.Invalid, "make one: mcpvault trust ca create", "the root in %s cannot be used", root).Because(err)
			}
			ca, err := above.CreateIntermediate(args[0], time.Duration(days)*24*time.Hour)
			return printCA(a, args[0], ca, err)
		})
	issue.Flags().StringVar(&root, "root", "", "directory of the root")
	issue.Flags().IntVar(&days, "days", days, "how long it may sign, at most 730; no SVID outlives it")
	show := a.Leaf("show DIR", "Shows an authority: its trust domain, its end, and the hashes of what is believed.", "  mcpvault trust ca show /var/lib/mcpvault/ca", cli.Args("DIR"),
		func(_ context.Context, args []string) error {
			ca, err := svid.LoadCA(args[0])
			return printCA(a, args[0], ca, err)
		})
	return a.Group("ca", "The authorities that sign the SVIDs of nodes and control planes.", "  mcpvault trust ca create /media/usb/ca --trust-domain mcpvault.example", create, issue, show)
}

func printCA(a *cli.App, dir string, ca *svid.CA, err error) error {
	switch {
	case errors.Is(err, svid.ErrCAExists):
		return problem.Newf(problem.Conflict, "choose another directory: an authority is never replaced by accident", "%s holds an authority already", dir)
	case err != nil:
		return problem.Newf(problem.Invalid, "", "the authority in %s cannot be used: %v", dir, err)
	}
	v := caView{TrustDomain: ca.TrustDomain(), Until: output.Time(ca.NotAfter().UnixMilli())}
	pins, err := svid.Pins(ca.Bundle())
	if err != nil {
		return err
	}
	for _, p := range pins {
		v.Bundle = append(v.Bundle, hex.EncodeToString(p[:]))
	}
	return cli.Print(a, v,
		output.Column[caView]{Head: "TRUST DOMAIN", Cell: func(v caView) string { return v.TrustDomain }},
		output.Column[caView]{Head: "UNTIL", Cell: func(v caView) string { return v.Until }},
		output.Column[caView]{Head: "BELIEVED", Cell: func(v caView) string {
			var all string
			for i, h := range v.Bundle {
				if i > 0 {
					all += ","
				}
				all += h[:16]
			}
			return all
		}})
}
