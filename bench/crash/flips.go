package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// FlipsReport is what became of damage to the files of a node that was not running.
type FlipsReport struct {
	Seed  uint64               `json:"seed"`
	Kinds map[string]*FlipKind `json:"kinds"`
	Found []string             `json:"found"`
}

// FlipKind counts damage to one kind of file.
type FlipKind struct {
	Flips     int `json:"flips"`
	Truncated int `json:"truncated"`
	// Noticed: the node did not serve and said why, or said that something is wrong while it served. Harmless: it served, and
	// every answer was right.
	Noticed  int `json:"noticed"`
	Harmless int `json:"harmless"`
}

// kinds are the files of a node, by what their paths begin with.
var kinds = []string{"state.db", "sessions.db", "raft/", "audit/", "floor", "blobs/", "cells.sealed"}

// victim is the node whose disk is damaged, and its number.
const (
	victim       = "n3"
	victimNumber = 2
)

// flips damages files of one node at random places, one at a time, and looks what the cell says afterwards.
func flips(ctx context.Context, bin string, each int, seed uint64, say func(string, ...any)) (*FlipsReport, error) {
	dev, err := devrun.Start(ctx, bin)
	if err != nil {
		return nil, err
	}
	c := &campaign{
		dev: dev, admin: &admin{url: dev.AdminURL, token: dev.AdminToken}, grants: map[string]*register{}, canary: newCanary(),
		rng:    rand.New(rand.NewPCG(seed, 2)),
		report: Report{Victims: map[string]int{}, Found: []string{}}, cfg: Config{Kills: 2},
	}
	defer c.canary.close()
	f := &flipper{campaign: c, dir: filepath.Join(dev.Dir, "data", "local-"+victim), report: &FlipsReport{Seed: seed, Kinds: map[string]*FlipKind{}}}
	err = f.run(ctx, each, say)
	f.report.Found = append([]string{}, c.report.Found...)
	return f.report, errors.Join(err, dev.Stop())
}

type flipper struct {
	*campaign
	dir    string
	report *FlipsReport
	open   *session
	shut   *session
	// n numbers the questions.
	n int
}

func (f *flipper) run(ctx context.Context, each int, say func(string, ...any)) error {
	if err := f.state(ctx); err != nil {
		return err
	}
	for i := range each {
		for _, kind := range kinds {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := f.round(ctx, kind, i%4 == 3); err != nil {
				return fmt.Errorf("%s, round %d: %w", kind, i, err)
			}
		}
		say("round %d of %d", i+1, each)
	}
	if err := f.settle(ctx); err != nil {
		f.found("%v", err)
		return nil
	}
	f.right(ctx, 0, 1, victimNumber)
	// What was noticed at the node whose log was damaged must not be in what the others, or the control plane, have.
	if _, err := f.dev.CLI(ctx, "audit", "verify"); err != nil {
		f.found("the audit logs do not verify any more: %v", err)
	}
	return nil
}

// state makes something to be right or wrong about: a grant, a revocation, a kill, a session and the end of one.
func (f *flipper) state(ctx context.Context) error {
	if err := f.prepare(ctx); err != nil {
		return err
	}
	if err := f.grant(ctx, "changer1", false); err != nil {
		return err
	}
	err := f.admin.post(ctx, "AccessService/Kill", map[string]any{"tenant": "acme", "kind": "user", "subject": "doomed0"}, nil)
	if err != nil {
		return err
	}
	for _, s := range []**session{&f.open, &f.shut} {
		a := ask(ctx, http.MethodPost, f.node(0)+"/canary", f.dev.Tokens["alice"],
			`{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"`+legacy+`","capabilities":{},"clientInfo":{"name":"crash","version":"1"}}}`)
		if a.status != http.StatusOK {
			return fmt.Errorf("no session: status %d: %w", a.status, a.err)
		}
		*s = &session{id: a.header.Get("Mcp-Session-Id")}
	}
	f.endSession(ctx, f.shut, 0)
	if err := f.settle(ctx); err != nil {
		return err
	}
	if f.right(ctx, 0, 1, victimNumber); len(f.campaign.report.Found) > 0 {
		return fmt.Errorf("before anything was damaged: %s", f.campaign.report.Found[0])
	}
	return nil
}

// right asks nodes for one answer of each kind, and keeps what is not right.
func (f *flipper) right(ctx context.Context, nodes ...int) bool {
	all := true
	wrong := func(n int, format string, args ...any) {
		all = false
		f.found("n%d: %s", n+1, fmt.Sprintf(format, args...))
	}
	for _, n := range nodes {
		f.n++
		ask := func(token string) answer {
			return effect(ctx, f.node(n), token, fmt.Sprintf("f%d", f.n), fmt.Sprintf("%032x", 0xf000+f.n))
		}
		if a := ask(f.grants["changer0"].token); !a.done() {
			wrong(n, "who may call is answered %d %v %.200s", a.status, a.err, a.body)
		}
		if a := ask(f.grants["changer1"].token); a.done() || a.err == nil && !a.hidden() && a.status != http.StatusServiceUnavailable {
			wrong(n, "whose grant was taken away is answered %d %.200s", a.status, a.body)
		}
		if a := ask(f.doomed[0].token); a.err == nil && a.status != http.StatusUnauthorized {
			wrong(n, "who was killed is answered %d %.200s", a.status, a.body)
		}
		if a := f.useSession(ctx, f.open, n); a.status != http.StatusOK {
			wrong(n, "a session that is open is answered %d %v", a.status, a.err)
		}
		if a := f.useSession(ctx, f.shut, n); a.err == nil && a.status != http.StatusNotFound {
			wrong(n, "a session that was ended is answered %d", a.status)
		}
	}
	return all
}

// round kills the node, damages one file, and starts it.
func (f *flipper) round(ctx context.Context, kind string, truncate bool) error {
	if err := f.kill(); err != nil {
		return err
	}
	path, size := f.pick(kind)
	if path == "" {
		return f.restart(ctx, victim)
	}
	backup, err := os.MkdirTemp("", "crash-flip-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(backup) }()
	if err := os.CopyFS(filepath.Join(backup, "data"), os.DirFS(f.dir)); err != nil {
		return err
	}
	k := f.report.Kinds[kind]
	if k == nil {
		k = &FlipKind{}
		f.report.Kinds[kind] = k
	}
	at := f.rng.Int64N(size)
	what := fmt.Sprintf("%s, bit flipped at %d of %d", strings.TrimPrefix(path, f.dir), at, size)
	if truncate {
		k.Truncated++
		what = fmt.Sprintf("%s, cut off at %d of %d", strings.TrimPrefix(path, f.dir), at, size)
		err = os.Truncate(path, at)
	} else {
		k.Flips++
		err = flip(path, at, byte(1<<f.rng.IntN(8)))
	}
	if err != nil {
		return err
	}
	serves := f.starts(ctx)
	before := len(f.campaign.report.Found)
	switch {
	case serves && !f.right(ctx, victimNumber):
		f.campaign.report.Found[before] = what + ": " + f.campaign.report.Found[before]
	case serves:
		k.Harmless++
		if f.right(ctx, 0, 1); len(f.campaign.report.Found) == before {
			return nil
		}
		f.found("the others are wrong after: %s", what)
		return nil
	default:
		k.Noticed++
	}
	if !f.right(ctx, 0, 1) {
		f.found("the others are wrong after: %s", what)
	}
	// It did not serve: it gets its disk of before back.
	if err := f.kill(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(f.dir), os.CopyFS(f.dir, os.DirFS(filepath.Join(backup, "data"))), private(f.dir)); err != nil {
		return err
	}
	return f.restart(ctx, victim)
}

// private gives the files back the modes that copying has not kept.
func private(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	})
}

// starts starts the node and reports whether it serves; one that says why not has noticed.
func (f *flipper) starts(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 25*time.Second)
	defer cancel()
	if _, err := f.dev.CLI(ctx, "dev", "restart", victim, "--data-dir", f.dev.Dir); err != nil {
		_ = f.dev.Reload()
		return false
	}
	_ = f.dev.Reload()
	for ctx.Err() == nil {
		if f.ready(ctx, victimNumber) {
			return true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// kill ends the node, when it runs.
func (f *flipper) kill() error {
	if err := f.dev.Reload(); err != nil {
		return err
	}
	pid := f.dev.PIDs.Nodes[victimNumber]
	if pid <= 1 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	for range 500 {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("process %d does not end", pid)
}

// pick chooses a file of a kind.
func (f *flipper) pick(kind string) (path string, size int64) {
	type file struct {
		path string
		size int64
	}
	var all []file
	_ = filepath.WalkDir(f.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasPrefix(strings.TrimPrefix(p, f.dir+"/"), kind) {
			return nil //nolint:nilerr // a file that has just gone
		}
		if info, err := d.Info(); err == nil && info.Size() > 0 {
			all = append(all, file{p, info.Size()})
		}
		return nil
	})
	if len(all) == 0 {
		return "", 0
	}
	slices.SortFunc(all, func(a, b file) int { return strings.Compare(a.path, b.path) })
	chosen := all[f.rng.IntN(len(all))]
	return chosen.path, chosen.size
}

func flip(path string, at int64, bit byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	if err == nil {
		b[0] ^= bit
		_, err = f.WriteAt(b, at)
	}
	return errors.Join(err, f.Close())
}
