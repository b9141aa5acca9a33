package mcp_test

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

func read(t *testing.T, r io.Reader, limit int) (out []mcp.Event, err error) {
	t.Helper()
	er := mcp.NewEventReader(r, limit)
	for {
		ev, err := er.Next()
		if err != nil {
			return out, err
		}
		out = append(out, mcp.Event{
			Raw: append([]byte(nil), ev.Raw...), Data: append([]byte(nil), ev.Data...), ID: append([]byte(nil), ev.ID...),
		})
	}
}

func TestEventsKeepTheirBytes(t *testing.T) {
	t.Parallel()
	const stream = "id: 7\nevent: message\ndata: {\"a\":\ndata: 1}\n\n: hello\n\nretry: 5\nid: 8\ndata:\n\ndata: cut off"
	for name, in := range map[string]string{
		"lf": stream, "crlf": strings.ReplaceAll(stream, "\n", "\r\n"), "cr": strings.ReplaceAll(stream, "\n", "\r"),
	} {
		got, err := read(t, iotest.OneByteReader(strings.NewReader(in)), 1<<10)
		if !errors.Is(err, io.EOF) || len(got) != 3 {
			t.Fatalf("%s: %d events, %v", name, len(got), err)
		}
		if string(got[0].Data) != "{\"a\":\n1}" || string(got[0].ID) != "7" || len(got[1].Data) != 0 || string(got[2].ID) != "8" {
			t.Fatalf("%s: %q", name, got)
		}
	}
	ev, err := mcp.NewEventReader(strings.NewReader("id: 1\nretry: 1500\ndata:\n\nretry: soon\ndata: x\n\n"), 1<<10).Next()
	if err != nil || ev.Retry != 1500*time.Millisecond {
		t.Fatalf("come back after %s, %v", ev.Retry, err)
	}
	if again := string(mcp.AppendEventFrom(nil, ev, []byte("{}"))); again != "retry: 1500\nid: 1\nevent: message\ndata: {}\n\n" {
		t.Fatalf("%q", again)
	}
	got, _ := read(t, strings.NewReader(stream), 1<<10)
	if string(got[0].Raw)+string(got[1].Raw)+string(got[2].Raw) != strings.TrimSuffix(stream, "data: cut off") {
		t.Fatalf("bytes changed: %q", got)
	}
}

func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"data: " + strings.Repeat("a", 200), strings.Repeat("data: a\n", 100)} {
		if _, err := read(t, strings.NewReader(in), 100); !errors.Is(err, mcp.ErrEventTooLarge) {
			t.Fatalf("E06: %v", err)
		}
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\ndata: x\n\n"))
	f.Add([]byte("\r\r\n\n:\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		whole, _ := read(t, strings.NewReader(string(b)), 1<<16)
		bytewise, _ := read(t, iotest.OneByteReader(strings.NewReader(string(b))), 1<<16)
		if len(whole) != len(bytewise) {
			t.Fatalf("%d events at once, %d byte by byte", len(whole), len(bytewise))
		}
		for i := range whole {
			if string(whole[i].Data) != string(bytewise[i].Data) || string(whole[i].ID) != string(bytewise[i].ID) {
				t.Fatalf("event %d differs", i)
			}
		}
	})
}

func TestAReaderRestsBetweenEventsOnly(t *testing.T) {
	t.Parallel()
	pr, pw := io.Pipe()
	er := mcp.NewEventReader(pr, 1<<10)
	if !er.Rest() {
		t.Fatal("a reader that has read nothing does not rest")
	}
	go func() {
		_, _ = io.WriteString(pw, "id: 1\ndata: a\n\ndata: b\n\n") // one read brings both
		_, _ = io.WriteString(pw, "data: c\r\n\r")
		_, _ = io.WriteString(pw, "\ndata: d\n\n")
		_ = pw.Close()
	}()
	for i, want := range []string{"a", "b", "c", "d"} {
		ev, err := er.Next()
		if err != nil || string(ev.Data) != want {
			t.Fatalf("%q %v", ev.Data, err)
		}
		if rests := er.Rest(); rests == (i == 0) {
			t.Fatalf("after %q it rests: %t", want, rests)
		}
	}
	if _, err := er.Next(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if er.Rest() {
		t.Fatal("a reader rests that has come to the end")
	}
}
