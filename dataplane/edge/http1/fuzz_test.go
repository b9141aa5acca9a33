package http1_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/edge/http1"
)

// FuzzHead holds the reader of heads against net/http's: what it takes, net/http takes and reads in the same way. How the
// bytes are cut, and what was read on the connection before, makes no difference.
func FuzzHead(f *testing.F) {
	usual, _, _ := bytes.Cut(call, []byte("\r\n\r\n"))
	usual = append(bytes.Clone(usual), "\r\n\r\n"...)
	for _, s := range []string{
		string(usual),
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET /a%2fb;c?d=e%20f&g HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close, X\r\n\r\n",
		"GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET HTTP://A:1?x HTTP/1.1\r\nHost: a:1\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
		"CONNECT /mcp HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET //a/../b HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nTrailer: X\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\nExpect: 100-Continue\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET / HTTP/1.1\r\nhost:a\r\nx-y-z:\t 1 \t\r\nX-Y-Z: \xff\r\nMCP-protocol-VERSION: 1\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nPragma: no-cache\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(255))
		f.Add([]byte(s), uint8(1))
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		r := http1.NewReader()
		got, n, err := r.Read(b, len(b)+1)
		cut, m, cutErr := r.Read(b, int(piece)+1) // the second time, the lines are known
		if n != m || (err == nil) != (cutErr == nil) {
			t.Fatalf("read %d, %v; in pieces %d, %v", n, err, m, cutErr)
		}
		after := http1.NewReader()
		if _, n, err := after.Read(usual, len(usual)); n == 0 || err != nil {
			t.Fatal(err)
		}
		second, k, secondErr := after.Read(b, len(b)+1)
		if k != n || (err == nil) != (secondErr == nil) {
			t.Fatalf("read %d, %v; as the second of a connection %d, %v", n, err, k, secondErr)
		}
		if n == 0 {
			return
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b[:n])))
		if err != nil {
			t.Fatalf("net/http does not take %q: %v", b[:n], err)
		}
		if std.Trailer != nil {
			std.Trailer = nil // trailers are dropped
		}
		if p := std.Header["Pragma"]; len(p) > 0 && p[0] == "no-cache" && got.Header["Cache-Control"] == nil {
			delete(std.Header, "Cache-Control") // net/http makes one up
		}
		for _, r := range []*http.Request{got, cut, second} {
			same(t, r, std)
		}
		for name, values := range got.Header {
			for _, v := range append(values, name) {
				if strings.ContainsAny(v, "\r\n\x00") {
					t.Errorf("%q has forbidden characters", v)
				}
			}
		}
	})
}

func same(t *testing.T, got, std *http.Request) {
	t.Helper()
	if got.Method != std.Method || got.RequestURI != std.RequestURI || got.Host != std.Host || got.Proto != std.Proto ||
		got.ProtoMajor != std.ProtoMajor || got.ProtoMinor != std.ProtoMinor || got.ContentLength != std.ContentLength || got.Close != std.Close {
		t.Errorf("read as %+v\nby net/http as %+v", got, std)
	}
	if !reflect.DeepEqual(got.URL, std.URL) {
		t.Errorf("target read as %#v, by net/http as %#v", got.URL, std.URL)
	}
	if !reflect.DeepEqual(got.Header, std.Header) || !reflect.DeepEqual(got.TransferEncoding, std.TransferEncoding) {
		t.Errorf("header read as %q %q, by net/http as %q %q", got.Header, got.TransferEncoding, std.Header, std.TransferEncoding)
	}
	if (got.Body == http.NoBody) != (std.Body == http.NoBody) {
		t.Errorf("body %v, by net/http %v", got.Body, std.Body)
	}
}

// FuzzChunks holds the reader of chunked bodies against net/http's: what it takes, net/http reads as the same data and
// ends at the same byte.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{
		"0\r\n\r\n", "1\r\na\r\n0\r\n\r\nGET", "A;x=\"y\"\r\n0123456789\r\n00\r\nT: v\r\nU:\r\n\r\n", "0x1\r\na\r\n0\r\n\r\n", "+1\r\na\r\n0\r\n\r\n",
		"1_0\r\n", "1\na\n0\n\n", "1\r\nab\r\n0\r\n\r\n", "00000000000000001\r\na\r\n0\r\n\r\n", "fffffffffffffff\r\na", "1 \r\na\r\n0\r\n\r\n", "1\r\na\r\n0\r\nbad trailer\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(255))
		f.Add([]byte(s), uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint8) {
		data, n, err := http1.Unchunk(b, len(b)+1)
		cut, m, cutErr := http1.Unchunk(b, int(piece)+1)
		if n != m || !bytes.Equal(data, cut) || (err == nil) != (cutErr == nil) {
			t.Fatalf("read %d %q, %v; in pieces %d %q, %v", n, data, err, m, cut, cutErr)
		}
		if n == 0 {
			return
		}
		in := bufio.NewReader(io.MultiReader(strings.NewReader("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(b)))
		r, err := http.ReadRequest(in)
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(data, want) {
			t.Fatalf("%q read as %q; by net/http as %q, %v", b[:n], data, want, err)
		}
		if rest, _ := io.ReadAll(in); !bytes.Equal(rest, b[n:]) {
			t.Fatalf("%q: ended before %q; by net/http before %q", b, b[n:], rest)
		}
	})
}
