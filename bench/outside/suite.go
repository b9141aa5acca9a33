package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed anchor.json
var anchorJSON []byte

// outcome counts the checks of one scenario.
type outcome struct {
	Passed int `json:"passed"`
	Failed int `json:"failed"`
}

// stage is where the suite finds the gateway while it runs one revision; end is called after that.
type stage struct {
	url string
	end func() error
}

// staging prepares the run of one revision, whose results appear one by one in dir.
type staging func(ctx context.Context, revision, dir string) (stage, error)

// at is the staging of a gateway that nothing happens to.
func at(gateway, token string) staging {
	return func(context.Context, string, string) (stage, error) {
		if token == "" {
			return stage{gateway, func() error { return nil }}, nil
		}
		u, stop, err := withToken(gateway, token)
		return stage{u, func() error { stop(); return nil }}, err
	}
}

var revisions = []string{"2026-07-28", "2025-11-25", "2025-06-18"}

// suite runs every server scenario of every revision against the gateway. A scenario counts when no check failed and at
// least as many passed as when the upstream is asked directly (the anchor); those that the suite itself does not score
// are held to the anchor alone.
func suite(ctx context.Context, k *toolkit, floor int, begin staging) error {
	var anchor map[string]map[string]outcome
	if err := json.Unmarshal(anchorJSON, &anchor); err != nil {
		return err
	}
	out, err := os.MkdirTemp("", "mcpvault-conformance-")
	if err != nil {
		return err
	}
	passed, failed := 0, 0
	for _, rev := range revisions {
		dir := filepath.Join(out, rev)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		st, err := begin(ctx, rev, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", rev, err)
		}
		if err := errors.Join(runSuite(ctx, k, st.url, rev, dir), st.end()); err != nil {
			return fmt.Errorf("%s: %w", rev, err)
		}
		p, f, err := tally(k, rev, dir, anchor[rev])
		if err != nil {
			return err
		}
		passed, failed = passed+p, failed+f
	}
	fmt.Printf("conformance: %d passed, %d failed\n", passed, failed)
	if passed < floor {
		return fmt.Errorf("%d scenarios passed, at least %d must; details in %s", passed, floor, out)
	}
	return os.RemoveAll(out)
}

func runSuite(ctx context.Context, k *toolkit, target, rev, dir string) error {
	args := []string{filepath.Join(k.suite, "dist", "index.js"), "server", "--url", target, "-o", dir}
	if requirements(k, rev) != "" {
		args = append(args, "--requirements", rev)
	} else {
		args = append(args, "--spec-version", rev, "--suite", "all")
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, k.node, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A failed scenario is the suite's exit status 1; the results on disk say which.
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return err
	}
	return ctx.Err()
}

func requirements(k *toolkit, rev string) string {
	path := filepath.Join(k.suite, "requirements", rev+".yaml")
	if exists(path) {
		return path
	}
	return ""
}

func unscored(path string) (map[string]bool, error) {
	set := map[string]bool{}
	if path == "" {
		return set, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var doc struct {
		NotScored []struct {
			Scenario string `yaml:"scenario"`
		} `yaml:"not_scored"`
	}
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	for _, e := range doc.NotScored {
		set[e.Scenario] = true
	}
	return set, nil
}

var resultDir = regexp.MustCompile(`^(?:server-)?(.+?)(?:-\d{4}-\d\d-\d\dT[\d-]+Z)?$`)

func tally(k *toolkit, rev, dir string, anchor map[string]outcome) (passed, failed int, err error) {
	optional, err := unscored(requirements(k, rev))
	if err != nil {
		return 0, 0, err
	}
	seen, err := results(dir)
	if err != nil {
		return 0, 0, err
	}
	names := map[string]bool{}
	for n := range seen {
		names[n] = true
	}
	for n := range anchor {
		names[n] = true
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, n := range sorted {
		got, ran := seen[n]
		want, anchored := anchor[n]
		ok := verdict(got, ran, want, anchored, optional[n])
		if ok {
			passed++
			continue
		}
		failed++
		fmt.Printf("FAIL %s %s: %d passed, %d failed (directly: %d passed, %d failed)\n",
			rev, n, got.Passed, got.Failed, want.Passed, want.Failed)
	}
	return passed, failed, nil
}

func verdict(got outcome, ran bool, want outcome, anchored, optional bool) bool {
	if !ran || anchored && got.Passed < want.Passed {
		return false
	}
	if optional && anchored && want.Failed > 0 {
		return true
	}
	if got.Passed+got.Failed == 0 {
		return anchored && want.Passed == 0
	}
	return got.Failed == 0 && got.Passed > 0
}

func results(dir string) (map[string]outcome, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	seen := map[string]outcome{}
	for _, e := range entries {
		o, err := readChecks(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		seen[resultDir.FindStringSubmatch(e.Name())[1]] = o.outcome
	}
	return seen, nil
}

// checks is what one scenario came to, and each of its checks by id and name: a scenario may make one more than once.
type checks struct {
	outcome
	all map[string]outcome
}

func readChecks(dir string) (checks, error) {
	b, err := os.ReadFile(filepath.Join(dir, "checks.json"))
	if err != nil {
		return checks{}, err
	}
	var list []struct {
		ID     string `json:"id"`
		Name   string `json:"name"`
		Status string `json:"status"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return checks{}, fmt.Errorf("%s: %w", dir, err)
	}
	c := checks{all: map[string]outcome{}}
	for _, e := range list {
		one := c.all[e.ID+" "+e.Name]
		switch strings.ToUpper(e.Status) {
		case "SUCCESS":
			c.Passed++
			one.Passed++
		case "FAILURE":
			c.Failed++
			one.Failed++
		}
		c.all[e.ID+" "+e.Name] = one
	}
	return c, nil
}
