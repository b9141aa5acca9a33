package trust

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/snapshot/ceremony"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// tokenKey is the key of access tokens, which a new installation makes for itself.
const tokenKey = "token"

func place(ctx context.Context, dir string, raw []byte) (uint64, error) {
	return keyring.Place(ctx, dir, raw, tokenKey)
}

func proposeCommand(a *cli.App) *cobra.Command {
	var roots, out string
	cmd := a.Leaf("propose", "Begins a change: writes the roots in force, one version on, into a file to edit with the next commands.",
		"  mcpvault trust propose --roots roots.pb --out next.json", cli.Args(),
		func(context.Context, []string) error {
			raw, err := a.Roots(roots, true)
			if err != nil {
				return err
			}
			p, err := ceremony.After(raw)
			if err != nil {
				return explain(err)
			}
			return create(a, out, p)
		})
	cmd.Flags().StringVar(&roots, "roots", "", "the roots in force; the context's when not given")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	return cmd
}

func initCommand(a *cli.App) *cobra.Command {
	var threshold uint32
	var out string
	var rootKeys, heads, beats, kills []string
	cmd := a.Leaf("init", "Begins a new installation: proposes its first roots out of public keys.",
		`  mcpvault trust init --root r1.key.pub --root r2.key.pub --root r3.key.pub --threshold 2 \
    --head head.key.pub --heartbeat heartbeat.key.pub --kill kill.key.pub --kill glass.key.pub --out first.json`, cli.Args(),
		func(context.Context, []string) error {
			p := ceremony.First(threshold)
			for i, files := range [][]string{rootKeys, heads, beats, kills} {
				for _, f := range files {
					if err := addKey(p, ceremony.Roles()[i], f); err != nil {
						return err
					}
				}
			}
			if _, err := p.Digest(); err != nil {
				return explain(err)
			}
			return create(a, out, p)
		})
	cmd.Flags().StringArrayVar(&rootKeys, "root", nil, "public half of a root key; several")
	cmd.Flags().Uint32Var(&threshold, "threshold", 2, "how many root keys sign the next roots")
	cmd.Flags().StringArrayVar(&heads, "head", nil, "public half of a key that signs policies")
	cmd.Flags().StringArrayVar(&beats, "heartbeat", nil, "public half of a key that signs heartbeats")
	cmd.Flags().StringArrayVar(&kills, "kill", nil, "public half of a key that signs kills: the control plane's, or one for emergencies")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	return cmd
}

// create writes a new proposal, over nothing.
func create(a *cli.App, path string, p *ceremony.Proposal) error {
	if path == "" {
		return problem.New(problem.Invalid, "where the proposal goes is not said", "give --out FILE")
	}
	b, err := p.Encode()
	if err != nil {
		return err
	}
	if err := writeNew(path, b); err != nil {
		return err
	}
	a.Notef("%s proposes version %d, unsigned; change it with add-key, remove-key and raise-epoch, then sign it", path, p.Version)
	return nil
}

func writeNew(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // proposals, signatures and roots are for everybody to read
	if err != nil {
		return problem.New(problem.Conflict, "the file cannot be written: "+err.Error(), "choose another name, or move away what is there")
	}
	_, err = f.Write(b)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func addKey(p *ceremony.Proposal, role, path string) error {
	pub, err := publicKey(path)
	if err != nil {
		return err
	}
	return explain(p.Add(role, pub))
}

// edit changes a proposal in its file. Signatures over what it was before do not fit any more, and say so.
func edit(a *cli.App, path string, change func(p *ceremony.Proposal) error) error {
	p, err := readProposal(path)
	if err != nil {
		return err
	}
	if err := change(p); err != nil {
		return err
	}
	b, err := p.Encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, b, 0o644); err != nil { //nolint:gosec // it is no secret
		return problem.New(problem.Invalid, "the proposal cannot be written: "+err.Error(), "check the file")
	}
	a.Notef("%s: version %d, epoch %d, %d keys", path, p.Version, p.Epoch, len(p.Keys))
	return nil
}

func readProposal(path string) (*ceremony.Proposal, error) {
	raw, err := cli.ReadFile(path, ceremony.MaxProposal)
	if err != nil {
		return nil, problem.New(problem.NotFound, "the proposal cannot be read: "+err.Error(), "make one with `mcpvault trust propose`")
	}
	p, err := ceremony.ParseProposal(raw)
	return p, explain(err)
}

func addCommand(a *cli.App) *cobra.Command {
	return a.Leaf("add-key PROPOSAL ROLE KEY.pub", "Gives a role to a key: root, head, heartbeat or kill.",
		"  mcpvault trust add-key next.json head head-2.key.pub", cli.Args("PROPOSAL", "ROLE", "KEY.pub"),
		func(_ context.Context, args []string) error {
			return edit(a, args[0], func(p *ceremony.Proposal) error { return addKey(p, args[1], args[2]) })
		})
}

func removeCommand(a *cli.App) *cobra.Command {
	return a.Leaf("remove-key PROPOSAL ID", "Withdraws a key: nothing that it alone has signed is believed any more.",
		"  mcpvault trust remove-key next.json 3f2a9c0d11e4b7a5", cli.Args("PROPOSAL", "ID"),
		func(_ context.Context, args []string) error {
			return edit(a, args[0], func(p *ceremony.Proposal) error { return explain(p.Remove(args[1])) })
		})
}

func epochCommand(a *cli.App) *cobra.Command {
	return a.Leaf("raise-epoch PROPOSAL", "Begins every tenant's generations again under a higher epoch: nothing published before, by whoever had a key, comes back.",
		"  mcpvault trust raise-epoch next.json      # after a head key was stolen, together with remove-key", cli.Args("PROPOSAL"),
		func(_ context.Context, args []string) error {
			return edit(a, args[0], func(p *ceremony.Proposal) error { p.RaiseEpoch(); return nil })
		})
}

func signCommand(a *cli.App) *cobra.Command {
	var roots, key, out string
	cmd := a.Leaf("sign PROPOSAL", "Signs a proposal with a root key, on its holder's machine, and shows what is being signed.",
		"  mcpvault trust sign next.json --roots roots.pb --key root-1.key --out root-1.sig", cli.Args("PROPOSAL"),
		func(_ context.Context, args []string) error {
			if key == "" || out == "" {
				return problem.New(problem.Invalid, "a root key and a file for the signature are needed", "give --key FILE and --out FILE")
			}
			p, err := readProposal(args[0])
			if err != nil {
				return err
			}
			before, err := proposedFrom(a, p, roots)
			if err != nil {
				return err
			}
			s, err := seal.ReadKey(key)
			if err != nil {
				return problem.New(problem.Invalid, "the root key cannot be used: "+err.Error(), "give the key's file, with mode 0600")
			}
			digest, err := p.Digest()
			if err != nil {
				return explain(err)
			}
			sig, err := p.Sign(s)
			if err != nil {
				return explain(err)
			}
			b, err := sig.Encode()
			if err != nil {
				return err
			}
			if err := writeNew(out, b); err != nil {
				return err
			}
			for _, line := range ceremony.Changes(before, p) {
				a.Notef("  %s", line)
			}
			a.Notef("signed with key %s: %s\nproposal digest %s: compare it with the other holders", s.KeyID(), out, digest)
			return nil
		})
	cmd.Flags().StringVar(&roots, "roots", "", "the roots that the proposal was made from; the context's when not given")
	cmd.Flags().StringVar(&key, "key", "", "file of the root key")
	cmd.Flags().StringVar(&out, "out", "", "file for the signature")
	return cmd
}

// proposedFrom is what the roots before said; nil for the first proposal of an installation.
func proposedFrom(a *cli.App, p *ceremony.Proposal, roots string) (*ceremony.Proposal, error) {
	if p.Version == 1 {
		return nil, nil
	}
	raw, err := a.Roots(roots, true)
	if err != nil {
		return nil, err
	}
	digest, err := seal.RootsDigest(raw)
	if err != nil {
		return nil, explain(err)
	}
	if digest.String() != p.Replaces {
		return nil, explain(fmt.Errorf("the proposal replaces roots %.16s, these are %.16s: %w", p.Replaces, digest, ceremony.ErrOther))
	}
	body, err := seal.RootsBody(raw)
	if err != nil {
		return nil, explain(err)
	}
	return ceremony.FromBody(body), nil
}

func assembleCommand(a *cli.App) *cobra.Command {
	var roots, out string
	cmd := a.Leaf("assemble PROPOSAL SIGNATURE...", "Puts a proposal and its holders' signatures together, when they are enough for the roots before and for its own.",
		"  mcpvault trust assemble next.json root-1.sig root-3.sig --roots roots.pb --out roots-2.pb", cli.Args("PROPOSAL", "SIGNATURE", "[SIGNATURE...]"),
		func(_ context.Context, args []string) error {
			if out == "" {
				return problem.New(problem.Invalid, "where the roots go is not said", "give --out FILE")
			}
			p, err := readProposal(args[0])
			if err != nil {
				return err
			}
			var before []byte
			if p.Version > 1 {
				if before, err = a.Roots(roots, true); err != nil {
					return err
				}
			}
			var sigs []*ceremony.Signature
			for _, path := range args[1:] {
				raw, err := cli.ReadFile(path, ceremony.MaxSignature)
				if err != nil {
					return problem.New(problem.NotFound, "a signature cannot be read: "+err.Error(), "check its name")
				}
				s, err := ceremony.ParseSignature(raw)
				if err != nil {
					return problem.Newf(problem.Invalid, "give what `mcpvault trust sign` wrote", "%s: %v", path, err)
				}
				sigs = append(sigs, s)
			}
			env, n, err := ceremony.Assemble(p, before, sigs...)
			if err != nil {
				return explain(err)
			}
			if err := writeNew(out, env); err != nil {
				return err
			}
			a.Notef("%s: version %d, %v; install it with `mcpvault trust install %s`", out, p.Version, n, out)
			return nil
		})
	cmd.Flags().StringVar(&roots, "roots", "", "the roots that the proposal was made from; the context's when not given")
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	return cmd
}
