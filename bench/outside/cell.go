package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

func clients(ctx context.Context, k *toolkit, bin string) error {
	d, err := devrun.Start(ctx, bin)
	if err != nil {
		return err
	}
	runs := []struct{ path, prefix, hidden, tools string }{
		{"/demo", "", "nope", `["echo","leak","slow"]`},
		{"", "demo__", "payments__refund", `["demo__echo","demo__leak","demo__slow","payments__balance"]`},
	}
	var errs error
	for _, r := range runs {
		for _, flavour := range []string{"v1", "v2", "v2-auto", "v2-pin"} {
			cmd := exec.CommandContext(ctx, k.node, k.client, flavour, d.MCPURLs[0]+r.path, d.Tokens["alice"])
			cmd.Dir = k.dir
			cmd.Env = append(os.Environ(), "PREFIX="+r.prefix, "HIDDEN_TOOL="+r.hidden, "WANT_TOOLS="+r.tools)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Run(); err != nil {
				errs = errors.Join(errs, fmt.Errorf("client %s on /mcp%s: %w", flavour, r.path, err))
			}
		}
	}
	return errors.Join(errs, d.Stop())
}
