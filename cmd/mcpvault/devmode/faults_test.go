package devmode

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/demoserver"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/fault"
	"github.com/mcpvault/mcpvault/dataplane/cell"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
)

func TestFaultsAreTypedAsPeopleSayThem(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]Fault{
		"cut n1 n2":               {Kind: FaultCut, On: []string{"n1", "n2"}},
		"one-way n1 controlplane": {Kind: FaultOneWay, On: []string{"n1", "controlplane"}},
		"delay n1 n2 200ms":       {Kind: FaultDelay, On: []string{"n1", "n2"}, For: Duration(200 * time.Millisecond)},
		"clock n2 +10m":           {Kind: FaultClock, On: []string{"n2"}, For: Duration(10 * time.Minute)},
		"clock n2 -10m":           {Kind: FaultClock, On: []string{"n2"}, For: Duration(-10 * time.Minute)},
		"clock n2 behind 10m":     {Kind: FaultClock, On: []string{"n2"}, For: Duration(-10 * time.Minute)},
		"disk n1 full":            {Kind: FaultDisk, On: []string{"n1"}, How: "full"},
		"svid n3 5s":              {Kind: FaultSVID, On: []string{"n3"}, For: Duration(5 * time.Second)},
		"upstream demo slow 5s":   {Kind: FaultUpstream, On: []string{"demo"}, How: "slow", For: Duration(5 * time.Second)},
		"upstream demo hang":      {Kind: FaultUpstream, On: []string{"demo"}, How: "hang"},
	} {
		got, err := ParseFault(strings.Fields(said), nil, false)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v", said, got, err)
		}
		// It goes over a socket, and comes out of `list -o json`.
		raw, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var back Fault
		if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back, want) {
			t.Errorf("%s came back as %+v, %v", raw, back, err)
		}
	}
	got, err := ParseFault([]string{"disk", "n1", "hang"}, []string{"raft", "audit"}, false)
	if err != nil || !reflect.DeepEqual(got.Parts, []cell.DiskPart{cell.DiskRaft, fault.Audit}) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestFaultsThatMakeNoSenseAreRefused(t *testing.T) {
	t.Parallel()
	for _, said := range []string{
		"", "flood n1", "cut n1", "cut n1 n1", "cut n1 n2 n3", "delay n1 n2", "delay n1 n2 -1s", "delay n1 n2 2h", "clock n2", "clock n2 10m",
		"clock n2 +0s", "clock n2 behind -10m", "clock n2 +99999h", "disk n1", "disk n1 slow", "svid n1", "svid n1 0s", "upstream demo",
		"upstream demo slow", "upstream demo slow soon", "upstream demo hang 5s",
	} {
		if f, err := ParseFault(strings.Fields(said), nil, false); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%q: %+v, %v", said, f, err)
		}
	}
	for said, only := range map[string]string{"disk n1 hang": "floppy", "cut n1 n2": "raft"} {
		if _, err := ParseFault(strings.Fields(said), []string{only}, false); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%q only %s: %v", said, only, err)
		}
	}
	for _, said := range []string{"cut n1", "disk n1 hang", "clock n2 +10m"} {
		if _, err := ParseFault(strings.Fields(said), nil, true); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("clear %q: %v", said, err)
		}
	}
}

// broken is an installation that is not started: its links are there, its processes are not.
func broken(t *testing.T) *Dev {
	t.Helper()
	d, err := New(Config{DataDir: t.TempDir(), PortBase: 18400, Nodes: 3, Cells: 2, Faults: true, LinkDelay: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	bg := newBackground()
	if err := d.startLinks(bg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bg.stop(); err != nil {
			t.Error(err)
		}
	})
	d.demos["demo"] = demoserver.Demo()
	return d
}

func (d *Dev) try(t *testing.T, op, words string) error {
	t.Helper()
	cmd := command{Op: op}
	if words != "" {
		f, err := ParseFault(strings.Fields(words), nil, op == opFaultClear)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Fault = &f
	}
	return d.obey(t.Context(), cmd)
}

func (d *Dev) do(t *testing.T, op, words string) {
	t.Helper()
	if err := d.try(t, op, words); err != nil {
		t.Fatalf("%s %s: %v", op, words, err)
	}
}

func (d *Dev) way(from, to string) (cut bool, delay time.Duration) {
	cut, delay, _ = d.links.ways[way{from, to}].look()
	return cut, delay
}

func TestLinksAreAsTheFaultsTogetherSay(t *testing.T) {
	t.Parallel()
	d := broken(t)
	if cut, delay := d.way(controlPlane, "local/n1"); cut || delay != time.Second {
		t.Fatal("a long line from the control plane", cut, delay)
	}
	d.do(t, opFaultSet, "cut n2 n1")
	d.do(t, opFaultSet, "one-way n1 n3")
	d.do(t, opFaultSet, "delay controlplane n1 500ms")
	for w, want := range map[way]bool{
		{"local/n1", "local/n2"}: true, {"local/n2", "local/n1"}: true,
		{"local/n1", "local/n3"}: true, {"local/n3", "local/n1"}: false,
		{"local/n2", "local/n3"}: false, {"cell2/n1", "cell2/n2"}: false,
	} {
		if cut, _ := d.way(w.from, w.to); cut != want {
			t.Errorf("%v is cut: %t", w, cut)
		}
	}
	if _, delay := d.way(controlPlane, "local/n1"); delay != 1500*time.Millisecond {
		t.Error("the delays do not add up:", delay)
	}
	// The same cut, named the other way round.
	d.do(t, opFaultClear, "cut n1 n2")
	if cut, _ := d.way("local/n2", "local/n1"); cut {
		t.Error("a cleared cut is still there")
	}
	d.do(t, opFaultClear, "")
	if cut, _ := d.way("local/n1", "local/n3"); cut || len(d.inForce()) > 0 {
		t.Error("not everything was cleared")
	}
}

func TestNodesReachEachOtherThroughTheLinks(t *testing.T) {
	t.Parallel()
	d := broken(t)
	seen := map[string]bool{}
	for _, n := range d.plan.nodes {
		plain, c := d.plan.cellConfig(n), d.plan.cellConfig(n)
		d.reroute(n, &c)
		if c.ControlPlane == plain.ControlPlane || c.Listen != plain.Listen {
			t.Errorf("%s: %s, %+v", n.id(), c.ControlPlane, c.Listen)
		}
		seen[c.ControlPlane] = true
		for i, m := range c.Members {
			self := m.Node == n.name
			if (m.Raft == plain.Members[i].Raft) != self || (m.Peer == plain.Members[i].Peer) != self {
				t.Errorf("%s reaches %+v", n.id(), m)
			}
			if !self {
				seen[m.Raft], seen[m.Peer] = true, true
			}
		}
	}
	// Each of six nodes has ways of its own: to the control plane, and two to each of two others.
	if len(seen) != 6*5 {
		t.Errorf("%d links", len(seen))
	}
}

func TestWhatIsWrongWithANodeIsPutTogether(t *testing.T) {
	t.Parallel()
	d := broken(t)
	d.do(t, opFaultSet, "clock n2 behind 10m")
	d.do(t, opFaultSet, "disk n2 error")
	d.do(t, opFaultSet, "disk n2 hang")
	n2, _ := d.plan.node("local/n2")
	want := fault.State{Clock: -10 * time.Minute, Disk: map[cell.DiskPart]fault.Kind{
		cell.DiskRaft: fault.Hang, cell.DiskStore: fault.Hang, fault.Audit: fault.Hang,
	}}
	if got := d.nodeFaults(n2); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	n1, _ := d.plan.node("local/n1")
	if got := d.nodeFaults(n1); !reflect.DeepEqual(got, fault.State{}) {
		t.Errorf("its neighbour: %+v", got)
	}
	d.do(t, opFaultClear, "disk n2")
	if got := d.nodeFaults(n2); len(got.Disk) != 0 || got.Clock == 0 {
		t.Errorf("%+v", got)
	}
}

func TestOnlyWhatIsThereIsBroken(t *testing.T) {
	t.Parallel()
	d := broken(t)
	for words, want := range map[string]problem.Code{
		"cut n1 cell2/n1": problem.Invalid, "cut n1 postgres": problem.Invalid, "clock controlplane +1m": problem.Invalid,
		"cut n1 n9": problem.NotFound, "disk n9 hang": problem.NotFound, "upstream payroll hang": problem.NotFound,
	} {
		if err := d.try(t, opFaultSet, words); problem.CodeOf(err) != want {
			t.Errorf("%s: %v", words, err)
		}
	}
	if err := d.try(t, opFaultClear, "cut n1 n2"); problem.CodeOf(err) != problem.NotFound {
		t.Errorf("a fault that is not there was cleared: %v", err)
	}
	if len(d.inForce()) != 0 {
		t.Error(d.inForce())
	}
	d.cfg.Faults = false
	if err := d.try(t, opFaultSet, "cut n1 n2"); problem.CodeOf(err) != problem.Conflict {
		t.Errorf("without --faults: %v", err)
	}
}

func TestAnIdentityThatEndsSoonIsReplacedWhenTheFaultIsCleared(t *testing.T) {
	t.Parallel()
	d := broken(t)
	if err := d.plan.issueIdentities(); err != nil {
		t.Fatal(err)
	}
	n3, _ := d.plan.node("local/n3")
	left := func() time.Duration {
		src, err := svid.Open(t.Context(), svid.Config{Dir: d.plan.identity(n3.file())})
		if err != nil {
			t.Fatal(err)
		}
		until, err := src.NotAfter()
		if err != nil {
			t.Fatal(err)
		}
		return time.Until(until)
	}
	d.do(t, opFaultSet, "svid n3 1m")
	if got := left(); got <= 0 || got > time.Minute {
		t.Errorf("%s left", got)
	}
	d.do(t, opFaultClear, "svid n3")
	if got := left(); got < svidTTL-time.Hour {
		t.Errorf("%s left", got)
	}
}
