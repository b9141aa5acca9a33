// Package trust holds the commands that change which keys are believed: the ceremony of the root keys. All but `show` and
// `install` work on files alone, on machines without a network, where root keys belong.
package trust

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/admin"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/machines"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/output"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/proof"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	"github.com/mcpvault/mcpvault/snapshot/ceremony"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

const ceremonyExample = `  # Replace the head key. Each root holder signs on their own machine; 2 of 3 are enough.
  mcpvault trust keygen head-2.key                              # in keys_dir; makes head-2.key.pub beside it
  mcpvault trust propose --roots roots.pb --out next.json
  mcpvault trust add-key next.json head head-2.key.pub
  mcpvault trust sign next.json --roots roots.pb --key root-1.key --out root-1.sig
  mcpvault trust sign next.json --roots roots.pb --key root-3.key --out root-3.sig
  mcpvault trust assemble next.json root-1.sig root-3.sig --roots roots.pb --out roots-2.pb
  mcpvault trust install roots-2.pb                             # no restart; everything is published anew
  # Once every node serves what the new key signed, do the same with remove-key and the old key's id.`

// Command is the group of all of them.
func Command(a *cli.App) *cobra.Command {
	return a.Group("trust", "Which keys are believed: the roots, and the ceremony that changes them.", ceremonyExample,
		showCommand(a), keygenCommand(a), proposeCommand(a), initCommand(a), addCommand(a), removeCommand(a), epochCommand(a),
		signCommand(a), assembleCommand(a), installCommand(a), machines.Authorities(a))
}

// keyView is a key of the roots.
type keyView struct {
	ID    string `json:"id"`
	Role  string `json:"role"`
	Since uint64 `json:"since"`
	Signs bool   `json:"signs"`
}

type rootsView struct {
	Version   uint64    `json:"version"`
	Epoch     uint64    `json:"epoch"`
	Threshold uint32    `json:"threshold"`
	Digest    string    `json:"digest"`
	Keys      []keyView `json:"keys"`
}

func showCommand(a *cli.App) *cobra.Command {
	return a.Leaf("show [FILE]", "Shows the roots: version, epoch, and which key may sign what. Without FILE those in force at the control plane.",
		`  mcpvault trust show
  mcpvault trust show roots.pb -o json`, cli.Args("[FILE]"),
		func(ctx context.Context, args []string) error {
			var raw []byte
			signs := map[string]bool{}
			if len(args) > 0 {
				b, err := readFile(args[0], "roots")
				if err != nil {
					return err
				}
				raw = b
			} else {
				res, err := inForce(ctx, a)
				if err != nil {
					return err
				}
				raw = res.GetRoots()
				for _, id := range []string{res.GetHeadKey(), res.GetHeartbeatKey(), res.GetKillKey()} {
					signs[id] = true
				}
			}
			v, err := viewRoots(raw, signs)
			if err != nil {
				return err
			}
			if f := a.Format(); f == output.JSON || f == output.YAML {
				return cli.Print(a, v, output.Column[rootsView]{Head: "DIGEST", Cell: func(v rootsView) string { return v.Digest }})
			}
			a.Notef("roots version %d, epoch %d, %d root keys sign the next ones, digest %s", v.Version, v.Epoch, v.Threshold, v.Digest)
			return cli.PrintList(a, v.Keys, keyColumns()...)
		})
}

// inForce asks the control plane, and checks that what it says follows from the roots that the reader has.
func inForce(ctx context.Context, a *cli.App) (*adminv1.GetRootsResponse, error) {
	client, c, err := a.Admin()
	if err != nil {
		return nil, err
	}
	res, err := client.System.GetRoots(ctx, &adminv1.GetRootsRequest{})
	if err != nil {
		return nil, err
	}
	if c.RootsFile == "" {
		a.Warnf("the context has no roots_file: this is the control plane's own word")
		return res, nil
	}
	known, err := a.Roots("", false)
	if err != nil {
		return nil, err
	}
	if _, err := proof.Follows(known, res.GetRoots()); err != nil {
		return nil, problem.Newf(problem.Denied, "do not use that control plane before you know why; compare the digests with a root holder",
			"the control plane's roots do not follow from those in %s: %v", c.RootsFile, err)
	}
	return res, nil
}

func viewRoots(raw []byte, signs map[string]bool) (rootsView, error) {
	if _, err := proof.Trust(raw); err != nil {
		return rootsView{}, err
	}
	body, err := seal.RootsBody(raw)
	if err != nil {
		return rootsView{}, err
	}
	digest, err := seal.RootsDigest(raw)
	if err != nil {
		return rootsView{}, err
	}
	v := rootsView{body.GetVersion(), body.GetEpoch(), body.GetThreshold(), digest.String(), []keyView{}}
	for _, k := range body.GetKeys() {
		v.Keys = append(v.Keys, keyView{k.GetKeyId(), ceremony.RoleName(k.GetRole()), max(1, k.GetSince()), signs[k.GetKeyId()]})
	}
	return v, nil
}

func keyColumns() []output.Column[keyView] {
	return []output.Column[keyView]{
		{Head: "ID", Cell: func(v keyView) string { return v.ID }},
		{Head: "ROLE", Cell: func(v keyView) string { return v.Role }},
		{Head: "SINCE", Cell: func(v keyView) string { return strconv.FormatUint(v.Since, 10) }},
		{Head: "SIGNS NOW", Cell: func(v keyView) string { return output.YesNo(v.Signs) }},
	}
}

type generatedKey struct {
	ID     string `json:"id"`
	Key    string `json:"key_file"`
	Public string `json:"public_file"`
}

const publicType = "PUBLIC KEY"

func keygenCommand(a *cli.App) *cobra.Command {
	return a.Leaf("keygen FILE", "Makes a key: FILE holds it, with mode 0600, and FILE.pub what others may see of it.",
		`  mcpvault trust keygen root-1.key          # on its holder's machine
  mcpvault trust keygen glass.key           # for kills in an emergency; name it with: add-key next.json kill glass.key.pub`, cli.Args("FILE"),
		func(_ context.Context, args []string) error {
			s, err := seal.GenerateKey()
			if err != nil {
				return err
			}
			der, err := x509.MarshalPKIXPublicKey(s.Public())
			if err != nil {
				return err
			}
			if err := seal.WriteKey(args[0], s); err != nil {
				return problem.New(problem.Conflict, "the key cannot be written: "+err.Error(), "a key is never overwritten: choose another name")
			}
			pub := args[0] + ".pub"
			if err := os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: publicType, Bytes: der}), 0o644); err != nil { //nolint:gosec // it is public
				return problem.New(problem.Invalid, "the public half cannot be written: "+err.Error(), "check the directory")
			}
			return cli.Print(a, generatedKey{s.KeyID(), args[0], pub},
				output.Column[generatedKey]{Head: "ID", Cell: func(v generatedKey) string { return v.ID }},
				output.Column[generatedKey]{Head: "KEY", Cell: func(v generatedKey) string { return v.Key }},
				output.Column[generatedKey]{Head: "PUBLIC", Cell: func(v generatedKey) string { return v.Public }})
		})
}

// publicKey reads what keygen wrote beside a key.
func publicKey(path string) (ed25519.PublicKey, error) {
	raw, err := readFile(path, "public key")
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != publicType || len(bytes.TrimSpace(rest)) > 0 {
		fix := "give the .pub file that `mcpvault trust keygen` wrote"
		if block != nil && strings.Contains(block.Type, "PRIVATE") {
			fix = "this is the private half, which stays where it is; give the .pub file beside it"
		}
		return nil, problem.Newf(problem.Invalid, fix, "%s holds no public key", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	pub, ok := key.(ed25519.PublicKey)
	if err != nil || !ok {
		return nil, problem.Newf(problem.Invalid, "give the .pub file that `mcpvault trust keygen` wrote", "%s holds no Ed25519 key", path)
	}
	return pub, nil
}

func readFile(path, what string) ([]byte, error) {
	raw, err := cli.ReadFile(path, seal.MaxRoots*2)
	if err != nil {
		return nil, problem.Newf(problem.NotFound, "check its name", "the %s cannot be read: %v", what, err)
	}
	return raw, nil
}

func installCommand(a *cli.App) *cobra.Command {
	var dir string
	cmd := a.Leaf("install FILE", "Puts assembled roots into force: through the control plane's API, or into its keys directory. It takes no restart.",
		`  mcpvault trust install roots-2.pb
  mcpvault trust install roots-2.pb --keys-dir /etc/mcpvault/keys      # on the control plane's machine`, cli.Args("FILE"),
		func(ctx context.Context, args []string) error {
			raw, err := readFile(args[0], "roots")
			if err != nil {
				return err
			}
			var version uint64
			if dir != "" {
				version, err = place(ctx, dir, raw)
			} else {
				version, err = send(ctx, a, raw)
			}
			if err != nil {
				return err
			}
			a.Notef("roots version %d are in force; see who signs with `mcpvault trust show`, and what the nodes serve with `mcpvault cell status`", version)
			return nil
		})
	cmd.Flags().StringVar(&dir, "keys-dir", "", "the control plane's keys_dir, instead of its API")
	return cmd
}

func send(ctx context.Context, a *cli.App, raw []byte) (uint64, error) {
	client, _, err := a.Admin()
	if err != nil {
		return 0, err
	}
	res, err := client.System.InstallRoots(ctx, &adminv1.InstallRootsRequest{Roots: raw})
	if err != nil {
		return 0, admin.Problem(err, client.URL)
	}
	return res.GetVersion(), nil
}

// explain words what the ceremony refuses.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ceremony.ErrOther):
		return problem.New(problem.Conflict, err.Error(), "sign this very proposal, and give the roots that it was made from with --roots")
	case errors.Is(err, seal.ErrSignature):
		return problem.New(problem.Denied, err.Error(), "have more root holders sign with `mcpvault trust sign`")
	case errors.Is(err, seal.ErrRole):
		return problem.New(problem.Denied, err.Error(), "sign with root keys only")
	case errors.Is(err, ceremony.ErrKey):
		return problem.New(problem.Invalid, err.Error(), "look at the keys with `mcpvault trust show FILE`, or at the proposal itself")
	}
	return problem.New(problem.Invalid, err.Error(), "see `mcpvault trust --help` for the order of the steps")
}
