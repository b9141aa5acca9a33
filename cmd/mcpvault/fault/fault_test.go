package fault_test

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/fault"
	"github.com/mcpvault/mcpvault/dataplane/cell"
)

func set(t *testing.T, n *fault.Node, s fault.State) {
	t.Helper()
	if err := n.Set(s); err != nil {
		t.Fatal(err)
	}
}

func disk(part cell.DiskPart, kind fault.Kind) fault.State {
	return fault.State{Disk: map[cell.DiskPart]fault.Kind{part: kind}}
}

func TestASoundNodeIsTheMachineItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := fault.New().Machine()
		if off := time.Until(m.Now()); off != 0 {
			t.Errorf("the clock is off by %s", off)
		}
		for _, part := range []cell.DiskPart{cell.DiskRaft, cell.DiskStore} {
			if err := m.BeforeWrite(part); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTheClockIsMovedAndSetBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := fault.New()
		now := n.Machine().Now
		for _, by := range []time.Duration{10 * time.Minute, -10 * time.Minute, 0} {
			set(t, n, fault.State{Clock: by})
			if off := time.Until(now()); off != by {
				t.Errorf("moved by %s, off by %s", by, off)
			}
		}
	})
}

func TestAFaultOfOnePartLeavesTheOthers(t *testing.T) {
	t.Parallel()
	n := fault.New()
	m := n.Machine()
	for kind, want := range map[fault.Kind]error{fault.Full: syscall.ENOSPC, fault.Error: syscall.EIO} {
		set(t, n, disk(cell.DiskRaft, kind))
		if err := m.BeforeWrite(cell.DiskRaft); !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
		if err := m.BeforeWrite(cell.DiskStore); err != nil {
			t.Errorf("%s reached the store: %v", kind, err)
		}
	}
	set(t, n, fault.State{})
	if err := m.BeforeWrite(cell.DiskRaft); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}

func TestAHangingWriteGoesOnWhenTheFaultIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := fault.New()
		set(t, n, disk(cell.DiskStore, fault.Hang))
		done := make(chan error, 1)
		go func() { done <- n.Machine().BeforeWrite(cell.DiskStore) }()
		set(t, n, fault.State{Clock: time.Hour, Disk: map[cell.DiskPart]fault.Kind{cell.DiskStore: fault.Hang}})
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatalf("a write on a hanging disk ended: %v", err)
		default:
		}
		set(t, n, fault.State{})
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestTheAuditLogsDiskHasTheSameFaults(t *testing.T) {
	t.Parallel()
	n := fault.New()
	f, err := n.Machine().AuditFS.Open(filepath.Join(t.TempDir(), "segment"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	for kind, want := range map[fault.Kind]error{fault.Full: syscall.ENOSPC, fault.Error: syscall.EIO} {
		set(t, n, disk(fault.Audit, kind))
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	set(t, n, disk(fault.Audit, fault.Hang))
	done := make(chan error, 1)
	go func() {
		_, err := f.WriteAt([]byte("x"), 0)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a write on a hanging disk ended: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	set(t, n, fault.State{})
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestANodeHearsWhatIsWrongBeforeItBeginsAndWheneverThatChanges(t *testing.T) {
	t.Parallel()
	here, there := net.Pipe()
	n := fault.New()
	began := make(chan error, 1)
	go func() { began <- n.Obey(there) }()
	line := fault.NewLine(here)
	for i, by := range []time.Duration{time.Hour, -time.Hour} {
		if err := line.Send(fault.State{Clock: by}); err != nil {
			t.Fatal(err)
		}
		if err := line.Wait(); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(n.Machine().Now()); (off - by).Abs() > time.Minute {
			t.Errorf("told %s, off by %s", by, off)
		}
		if i == 0 {
			if err := <-began; err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := line.Send(disk("floppy", fault.Hang)); err != nil {
		t.Fatal(err)
	}
	if err := line.Wait(); err == nil {
		t.Error("a disk that does not exist was broken")
	}
	_ = here.Close()
	if err := line.Send(fault.State{}); err == nil {
		t.Error("told nobody")
	}
}
