package resume_test

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/resume"
)

var mine = [16]byte{1}

func text(events [][]byte) string { return string(bytes.Join(events, []byte(" "))) }

func TestAReaderGetsWhatCameAfterItsEventAndThenTheRest(t *testing.T) {
	t.Parallel()
	s := resume.New(resume.Config{})
	w, _ := s.Open(mine, nil)
	for i := range 3 {
		if n := w.Next(); n != uint64(i+1) {
			t.Fatal(n)
		}
		w.Append(fmt.Appendf(nil, "e%d", i+1))
	}
	r, _, found := s.Take(w.Name())
	if !found {
		t.Fatal("not found")
	}
	events, more, ended, whole := r.After(1)
	if text(events) != "e2 e3" || ended || !whole {
		t.Fatal(text(events), ended, whole)
	}
	select {
	case <-more:
		t.Fatal("there is no more yet")
	default:
	}
	w.Append([]byte("e4"))
	<-more
	w.Finish()
	if events, _, ended, whole = r.After(3); text(events) != "e4" || !ended || !whole {
		t.Fatal(text(events), ended, whole)
	}
	for _, number := range []uint64{5, 1e9} {
		if _, _, _, whole := r.After(number); whole {
			t.Errorf("C21: %d is ahead", number)
		}
	}
	for _, other := range []resume.Name{{Session: mine}, {Session: [16]byte{2}, Number: w.Name().Number}} {
		if _, _, found := s.Take(other); found {
			t.Errorf("C21: %v is nobody's", other)
		}
	}
}

func TestTheWindowIsBounded(t *testing.T) {
	t.Parallel()
	s := resume.New(resume.Config{})
	w, _ := s.Open(mine, nil)
	for range 300 {
		w.Append([]byte("e"))
	}
	if events, _, _, whole := w.After(44); !whole || len(events) != 256 {
		t.Errorf("C22: %d events, %t", len(events), whole)
	}
	if _, _, _, whole := w.After(43); whole {
		t.Error("C21: behind the window")
	}
	w.Append(make([]byte, 1<<20-10))
	if events, _, _, _ := w.After(300); len(events) != 1 {
		t.Error(len(events))
	}
	if _, n := s.Len(); n > 1<<20 {
		t.Errorf("C22: %d bytes", n)
	}
	w.Append(make([]byte, 1<<20+1))
	if _, n := s.Len(); n != 0 {
		t.Errorf("C22: an event that is larger than the window leaves %d bytes", n)
	}
	all := resume.New(resume.Config{MaxTotal: 1 << 20, MaxStreams: 3})
	for range 3 {
		one, _ := all.Open(mine, nil)
		one.Append(make([]byte, 600<<10))
	}
	if four, _ := all.Open(mine, nil); four != nil {
		t.Error("a fourth of three")
	}
	if _, n := all.Len(); n > 1<<20 {
		t.Errorf("%d bytes of all streams", n)
	}
}

func TestAStreamIsForgottenWhenNobodyComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(*testing.T) {
		s, lost := resume.New(resume.Config{Keep: time.Minute}), 0
		w, reading := s.Open(mine, func() { lost++ })
		time.Sleep(time.Hour)
		w.Append([]byte("e1"))
		w.Leave(reading, "state")
		time.Sleep(59 * time.Second)
		r, taken, found := s.Take(w.Name())
		if !found || taken.Left != "state" {
			t.Fatal("forgotten while it was kept")
		}
		time.Sleep(time.Hour)
		again, last, _ := s.Take(w.Name())
		<-taken.Taken
		r.Leave(taken, nil) // the first reader's end is not the second one's
		time.Sleep(time.Hour)
		if events, _, _, whole := again.After(0); text(events) != "e1" || !whole || lost != 0 {
			t.Fatal(text(events), whole, lost)
		}
		again.Leave(last, nil)
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if n, b := s.Len(); n != 0 || b != 0 || lost != 1 {
			t.Errorf("%d streams, %d bytes, lost %d times", n, b, lost)
		}
		// One that has ended is nobody's loss, and one that is forgotten keeps nothing.
		done, _ := s.Open(mine, func() { lost++ })
		done.Append([]byte("e"))
		done.Finish()
		time.Sleep(61 * time.Second)
		synctest.Wait()
		done.Append([]byte("e"))
		if n, b := s.Len(); n != 0 || b != 0 || lost != 1 {
			t.Errorf("%d streams, %d bytes, lost %d times", n, b, lost)
		}
	})
}

func TestAnEndedSessionsStreamsAreForgotten(t *testing.T) {
	t.Parallel()
	s, lost := resume.New(resume.Config{}), 0
	w, _ := s.Open(mine, func() { lost++ })
	other, _ := s.Open([16]byte{2}, func() { lost++ })
	s.End(mine)
	if _, _, found := s.Take(w.Name()); found || lost != 1 {
		t.Error(found, lost)
	}
	s.Close()
	_, reading, found := s.Take(other.Name())
	if !found {
		t.Fatal("one that is read was forgotten")
	}
	other.Leave(reading, nil)
	s.Close()
	if n, _ := s.Len(); n != 0 || lost != 2 {
		t.Error(n, lost)
	}
}
