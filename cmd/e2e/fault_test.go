package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/devrun"
)

// said reads a node's page of health and reports its status and text.
func said(t *testing.T, d *devrun.Dev, node int, page string) (status int, text string) {
	t.Helper()
	resp, err := http.Get(d.Metrics[node-1] + page)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// comesTrue waits: what is broken shows on its own time, which tests hold to no limit.
func comesTrue(t *testing.T, what string, ok func() error) {
	t.Helper()
	err := errors.New("never looked")
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = ok(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func TestWhatIsBrokenOnPurposeFailsClosedAndIsMended(t *testing.T) {
	t.Parallel()
	d := start(t, "--faults")
	fault := func(args ...string) string {
		t.Helper()
		out, _ := must(t, d, 0, append([]string{"dev", "fault", "--data-dir", d.Dir}, args...)...)
		return out
	}
	page := func(node int, page string, want int) func() error {
		return func() error {
			if got, text := said(t, d, node, page); got != want {
				return fmt.Errorf("n%d says %d at %s: %s", node, got, page, text)
			}
			return nil
		}
	}
	allReady := func() {
		t.Helper()
		for n := 1; n <= 3; n++ {
			comesTrue(t, "every node is ready again", page(n, "/readyz", http.StatusOK))
		}
	}
	call := func(node int, words ...string) (string, int) {
		t.Helper()
		out, errs, status := cli(t, d, append([]string{"mcp", "call", "--as", "alice", "--node", fmt.Sprintf("n%d", node)}, words...)...)
		return out + errs, status
	}
	must(t, d, 0, "grant", "user:alice", "server:payments/refund")

	// The disk of the audit log: nothing is done without a record, and what only reads goes on.
	fault("set", "disk", "n1", "full", "--only", "audit")
	if text, status := call(1, "payments/refund", "amount=1"); status == 0 || !strings.Contains(text, "audit") {
		t.Errorf("a call with effects whose record cannot be kept: status %d\n%s", status, text)
	}
	if text, status := call(1, "demo/echo", "message=hello"); status != 0 || !strings.Contains(text, "hello") {
		t.Errorf("a call that reads: status %d\n%s", status, text)
	}
	if text, status := call(2, "payments/refund", "amount=2"); status != 0 {
		t.Errorf("another node: status %d\n%s", status, text)
	}
	comesTrue(t, "the node is not ready", page(1, "/readyz/audit", http.StatusServiceUnavailable))
	fault("clear", "disk", "n1")
	comesTrue(t, "calls with effects are taken again", func() error {
		if text, status := call(1, "payments/refund", "amount=3"); status != 0 {
			return errors.New(text)
		}
		return nil
	})
	allReady()

	// The clock: the node is not ready, and its peers do not doubt their own.
	for _, wrong := range []string{"ahead", "behind"} {
		fault("set", "clock", "n2", wrong, "10m")
		comesTrue(t, "a node whose clock is wrong is not ready", page(2, "/readyz/clock", http.StatusServiceUnavailable))
		for _, n := range []int{1, 3} {
			if err := page(n, "/readyz/clock", http.StatusOK)(); err != nil {
				t.Error(err)
			}
		}
		fault("clear", "--all")
		allReady()
	}

	// The network: a node that is alone serves by what it has, and knows that nobody leads.
	fault("set", "cut", "n3", "n1")
	fault("set", "cut", "n3", "n2")
	fault("set", "one-way", "n3", "controlplane")
	var listed []struct {
		Kind string   `json:"kind"`
		On   []string `json:"on"`
	}
	if err := json.Unmarshal([]byte(fault("list", "-o", "json")), &listed); err != nil || len(listed) != 3 || listed[2].Kind != "one-way" || listed[2].On[1] != "controlplane" {
		t.Errorf("%+v, %v", listed, err)
	}
	comesTrue(t, "nobody leads a node that is alone", func() error {
		if _, text := said(t, d, 3, "/readyz?verbose"); !strings.Contains(text, "no leader") {
			return errors.New(text)
		}
		return nil
	})
	if text, status := call(3, "demo/echo", "message=alone"); status != 0 || !strings.Contains(text, "alone") {
		t.Errorf("a node that is alone: status %d\n%s", status, text)
	}
	fault("clear", "--all")
	comesTrue(t, "the node has a leader again", func() error {
		if _, text := said(t, d, 3, "/readyz?verbose"); strings.Contains(text, "no leader") {
			return errors.New(text)
		}
		return nil
	})
	if text := fault("list", "-o", "json"); strings.TrimSpace(text) != "[]" {
		t.Errorf("still broken: %s", text)
	}
	if _, errs := must(t, d, 3, "dev", "fault", "--data-dir", d.Dir, "clear", "cut", "n1", "n2"); !strings.Contains(errs, "fault list") {
		t.Errorf("clearing what is not broken: %s", errs)
	}
}
