package cell

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/peers"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
	"github.com/mcpvault/mcpvault/snapshot"
)

const bombSize = 512 << 20

// bomb is half a gigabyte of zeroes in half a megabyte of gzip.
func bomb(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	zeroes := make([]byte, 1<<20)
	for range bombSize >> 20 {
		if _, err := z.Write(zeroes); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// frame is one message of a stream of the Connect protocol.
func frame(flags byte, data []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flags}, uint32(len(data))), data...)
}

// hostile is a control plane, or a peer, that answers every call with what a test gives it.
type hostile struct {
	t      *testing.T
	stream func(w io.Writer)
	unary  []byte
}

func (h hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := r.Header.Get("Content-Type")
	_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1<<20))
	w.Header().Set("Content-Type", kind)
	switch {
	case strings.HasPrefix(kind, "application/connect+"):
		w.Header().Set("Connect-Content-Encoding", "gzip")
		h.stream(w)
	case kind == "application/proto" || r.Method == http.MethodGet:
		w.Header().Set("Content-Type", "application/proto")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(h.unary)
	default:
		h.t.Errorf("a call of type %q: this test does not know the protocol", kind)
	}
}

// grown is how many bytes were allocated while f ran, in all.
func grown(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// It measures what the whole process allocates, so nothing runs beside it.
func TestABombOfTheControlPlaneOrOfAPeerIsRefusedInBoundedMemory(t *testing.T) {
	boom := bomb(t)
	if len(boom) > maxMessage {
		t.Fatalf("the bomb has %d bytes and would be refused for that", len(boom))
	}
	endless := func(w io.Writer) {
		zeroes := make([]byte, 64<<10)
		_, _ = w.Write(append([]byte{0}, 0x7f, 0xff, 0xff, 0xff))
		for range 512 { // 32 MiB, of two gigabytes that are announced
			if _, err := w.Write(zeroes); err != nil {
				return
			}
		}
	}
	digest := snapshot.DigestOf([]byte("shard"))
	for name, stream := range map[string]func(w io.Writer){
		"gzip": func(w io.Writer) { _, _ = w.Write(frame(1, boom)) },
		"gzip, many times": func(w io.Writer) {
			for range 8 {
				_, _ = w.Write(frame(1, boom))
			}
		},
		"gzip at the end":   func(w io.Writer) { _, _ = w.Write(frame(3, boom)) },
		"a length too high": endless,
	} {
		srv := httptest.NewServer(hostile{t, stream, boom})
		control := controlClient(http.DefaultTransport, srv.URL)
		set := peers.NewSet(map[string]string{"n2": strings.TrimPrefix(srv.URL, "http://")}, func(string) http.RoundTripper { return plain{} })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for call, do := range map[string]func() error{
			"Watch": func() error {
				s, err := control.Watch(ctx, &cellv1.WatchRequest{})
				if err != nil {
					return err
				}
				defer func() { _ = s.Close() }()
				_, err = s.Receive()
				return err
			},
			"FetchBlob": func() error { _, err := shards{control}.Fetch(ctx, digest, 1<<20); return err },
			"ReadBlob":  func() error { _, err := set.Fetch(ctx, digest, 1<<20); return err },
			"GetStatus": func() error { _, err := set.Status(ctx, "n2"); return err },
			"Acknowledge": func() error {
				_, err := control.Acknowledge(ctx, &cellv1.AcknowledgeRequest{TenantId: "t"})
				return err
			},
		} {
			var err error
			size := grown(func() { err = do() })
			if err == nil || size > 64<<20 {
				t.Errorf("%s of %s: %v, %d MiB allocated", name, call, err, size>>20)
			}
		}
		cancel()
		srv.Close()
	}
}

// plain speaks to a peer without TLS.
type plain struct{}

func (plain) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "http"
	return http.DefaultTransport.RoundTrip(r)
}
