package upstream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// read takes an answer apart the way a call does.
func read(src io.Reader) (head, []byte, error) {
	r := headReader{src: src, buf: make([]byte, 512)}
	h, rest, err := r.read()
	if err != nil {
		return head{}, nil, err
	}
	b := body{src: src, rest: rest, framing: h.framing, left: h.length}
	all, err := b.all(1 << 20)
	return h, all, err
}

func TestAnswersThatTwoReadersCouldReadDifferentlyAreRefused(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"length and chunks":      "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
		"one length twice":       "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
		"a list of lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
		"a signed length":        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nab",
		"a hexadecimal length":   "HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nab",
		"a huge length":          "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nab",
		"an empty length":        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"a folded field":         "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
		"space before the colon": "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab",
		"a bare LF":              "HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
		"a bare LF at the end":   "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
		"a bare CR":              "HTTP/1.1 200 OK\r\nX: a\rContent-Length: 9\r\nContent-Length: 0\r\n\r\n",
		"a NUL":                  "HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 0\r\n\r\n",
		"another encoding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunked twice":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunks in 1.0":          "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a compressed body":      "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n",
		"a body on 204":          "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nab",
		"two content types":      "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Type: text/event-stream\r\nContent-Length: 0\r\n\r\n",
		"two sessions":           "HTTP/1.1 200 OK\r\nMcp-Session-Id: a\r\nMcp-Session-Id: b\r\nContent-Length: 0\r\n\r\n",
		"an upgrade":             "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/2":                 "HTTP/2.0 200 OK\r\n\r\n",
		"no HTTP":                "SSH-2.0-OpenSSH_9.6\r\n",
		"a status of two digits": "HTTP/1.1 20 OK\r\n\r\n",
		"endless interim":        strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 50) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"a second answer":        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\n",
		"bytes behind chunks":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1",
		"a negative chunk":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
		"a chunk of 2^64":        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
		"a chunk without a size": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n",
		"a chunk that lies":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
		"a chunk ended by LF":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
		"a long extension":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 300) + "\r\na\r\n0\r\n\r\n",
		"all framing":            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 200)+"\r\na\r\n", 200) + "0\r\n\r\n",
		"a trailer without name": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n: a\r\n\r\n",
		"an endless trailer":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("a: b\r\n", 2000) + "\r\n",
		"too many fields":        "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 101) + "Content-Length: 0\r\n\r\n",
		"too large a head":       "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 33<<10) + "\r\n\r\n",
	} {
		if _, _, err := read(strings.NewReader(answer)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := read(iotest.OneByteReader(strings.NewReader(answer))); !errors.Is(err, ErrProtocol) && name != "a second answer" &&
			name != "bytes behind chunks" { // which then still lie in the socket
			t.Errorf("%s, byte by byte: %v", name, err)
		}
	}
}

func TestAnswersAreReadWhateverTheirFraming(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789abcdef", 10_000)
	for name, tc := range map[string]struct {
		answer, body, session string
		media                 media
		keep                  bool
	}{
		"length":      {"HTTP/1.1 200 OK\r\ncontent-type: Application/JSON; charset=utf-8\r\ncontent-length: 2\r\n\r\n{}", "{}", "", mediaJSON, true},
		"none":        {"HTTP/1.1 202\r\nContent-Length: 0\r\n\r\n", "", "", mediaOther, true},
		"204":         {"HTTP/1.1 204 \r\n\r\n", "", "", mediaOther, true},
		"close":       {"HTTP/1.1 200 OK\r\nMcp-Session-Id: \t s1 \r\n\r\nabc", "abc", "s1", mediaOther, false},
		"1.0":         {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab", "ab", "", mediaOther, false},
		"said close":  {"HTTP/1.1 200 OK\r\nConnection: keep-alive, CLOSE\r\nContent-Length: 2\r\n\r\nab", "ab", "", mediaOther, false},
		"interim":     {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na", "a", "", mediaOther, true},
		"chunks":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=\"y\"\r\nabc\r\n0A\r\n0123456789\r\n000\r\nT: a\r\n\r\n", "abc0123456789", "", mediaOther, true},
		"long":        {"HTTP/1.1 200 OK\r\nContent-Length: 160000\r\n\r\n" + long, long, "", mediaOther, true},
		"long chunks": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("27100\r\n"+long+"\r\n", 3) + "0\r\n\r\n", strings.Repeat(long, 3), "", mediaOther, true},
	} {
		for way, src := range map[string]io.Reader{
			"at once": strings.NewReader(tc.answer), "byte by byte": iotest.OneByteReader(strings.NewReader(tc.answer)),
			"with the end": iotest.DataErrReader(strings.NewReader(tc.answer)),
		} {
			h, b, err := read(src)
			if err != nil || string(b) != tc.body || h.media != tc.media || h.session != tc.session || h.keep != tc.keep {
				t.Errorf("%s, %s: %+v %.40q %v", name, way, h, b, err)
			}
		}
	}
}

func TestAnAnswerThatEndsEarlyIsNoAnswer(t *testing.T) {
	t.Parallel()
	for _, whole := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: a\r\n\r\n",
	} {
		for n := range len(whole) {
			if _, _, err := read(strings.NewReader(whole[:n])); err == nil {
				t.Errorf("%q was taken for whole", whole[:n])
			}
		}
	}
	if _, _, err := read(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n")); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large by its own word: %v", err)
	}
	if _, _, err := read(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n\r\n"), neverEnding{})); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large without a word: %v", err)
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

// FuzzAnswer compares with net/http: what is taken here means the same there. The other way round does not hold, since
// net/http takes more.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nMcp-Session-Id: x\r\n\r\n",
		"HTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nabc",
	} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, raw []byte, portion int) {
		src := io.Reader(bytes.NewReader(raw))
		if portion > 0 {
			src = &portions{raw, portion}
		}
		h, got, err := read(src)
		if err != nil {
			return
		}
		br := bufio.NewReader(bytes.NewReader(raw))
		req := &http.Request{Method: http.MethodPost}
		resp, err := http.ReadResponse(br, req)
		for err == nil && resp.StatusCode < 200 {
			resp, err = http.ReadResponse(br, req)
		}
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		want, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("net/http does not find its end: %v", err)
		}
		if h.status != resp.StatusCode || !bytes.Equal(got, want) || h.session != resp.Header.Get("Mcp-Session-Id") ||
			h.media != mediaOf(resp.Header.Get("Content-Type")) {
			t.Fatalf("%+v %q, net/http: %d %q %v", h, got, resp.StatusCode, want, resp.Header)
		}
		if h.keep && resp.Close {
			t.Fatal("net/http would not use the connection again")
		}
	})
}

// portions gives so many bytes at a time.
type portions struct {
	rest []byte
	n    int
}

func (p *portions) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.n)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
