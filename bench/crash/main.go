package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// errFound ends the program when something was lost.
var errFound = errors.New("what was promised was not kept")

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what to do: kills, flips or broken")
	}
	f := flag.NewFlagSet("crash", flag.ContinueOnError)
	n := f.Int("n", 200, "how many SIGKILLs; with broken, for each build; with flips, of each kind of file")
	seed := f.Uint64("seed", 1, "where they strike")
	out := f.String("o", "", "file for the report, JSON; standard output when empty")
	bin := f.String("bin", "", "the mcpvault to try; built when empty")
	only := f.String("only", "", "with broken: only this build")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	switch args[0] {
	case "kills":
		if *bin == "" {
			dir, built, err := build(ctx, "")
			if err != nil {
				return err
			}
			defer func() { _ = os.RemoveAll(dir) }()
			*bin = built
		}
		r, err := run(ctx, Config{Bin: *bin, Kills: *n, Seed: *seed, Log: say})
		if err != nil {
			return err
		}
		if err := write(*out, r); err != nil {
			return err
		}
		if len(r.Found) > 0 {
			return errFound
		}
		return nil
	case "flips":
		if *bin == "" {
			dir, built, err := build(ctx, "")
			if err != nil {
				return err
			}
			defer func() { _ = os.RemoveAll(dir) }()
			*bin = built
		}
		r, err := flips(ctx, *bin, *n, *seed, say)
		if err != nil {
			return err
		}
		if err := write(*out, r); err != nil {
			return err
		}
		if len(r.Found) > 0 {
			return errFound
		}
		return nil
	case "broken":
		list, err := tryBroken(ctx, *n, *seed, *only, say)
		if err != nil {
			return err
		}
		return errors.Join(write(*out, list), missed(list))
	}
	return fmt.Errorf("there is no %q: kills, flips or broken", args[0])
}

func write(path string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	if path == "" {
		_, err = os.Stdout.Write(raw)
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

// build makes an mcpvault, broken in one way unless that is "".
func build(ctx context.Context, way string) (dir, bin string, err error) {
	if dir, err = os.MkdirTemp("", "mcpvault-crash-"); err != nil {
		return "", "", err
	}
	bin = filepath.Join(dir, "mcpvault")
	args := []string{"build", "-o", bin}
	if way != "" {
		args = append(args, "-tags", "broken", "-ldflags", "-X github.com/mcpvault/mcpvault/kit/broken.way="+way)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "github.com/mcpvault/mcpvault/cmd/mcpvault")...)
	if text, err := cmd.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", "", fmt.Errorf("build %s: %w\n%s", way, err, text)
	}
	return dir, bin, nil
}
