package http1

import (
	"bytes"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
)

// Bounds of one request's head (RFC 9112, sections 3 and 5).
const (
	// maxTarget bounds the request target.
	maxTarget = 8 << 10
	maxMethod = 32
)

// refusal is why a request was not taken: its status, a word for counting and a sentence for people.
type refusal struct {
	status int
	reason string
	detail string
}

func (r *refusal) Error() string { return r.detail }

// The refusals. None of them says anything that the caller has sent.
var (
	errLine        = &refusal{http.StatusBadRequest, "request_line", "the request line is malformed"}
	errVersion     = &refusal{http.StatusHTTPVersionNotSupported, "http_version", "this listener speaks HTTP/1.1"}
	errTarget      = &refusal{http.StatusBadRequest, "request_target", "the request target is malformed"}
	errTargetLong  = &refusal{http.StatusRequestURITooLong, "request_target_long", "the request target is too long"}
	errLineEnd     = &refusal{http.StatusBadRequest, "line_end", "a line does not end with CRLF"}
	errFieldName   = &refusal{http.StatusBadRequest, "field_name", "the name of a header field is malformed"}
	errFieldValue  = &refusal{http.StatusBadRequest, "field_value", "the value of a header field has forbidden characters"}
	errFold        = &refusal{http.StatusBadRequest, "field_folded", "header fields may not be folded over lines"}
	errHeadLarge   = &refusal{http.StatusRequestHeaderFieldsTooLarge, "header_too_large", "the header block is too large"}
	errFields      = &refusal{http.StatusRequestHeaderFieldsTooLarge, "too_many_headers", "too many header fields"}
	errHostMissing = &refusal{http.StatusBadRequest, "host_missing", "the Host header is missing"}
	errHostTwice   = &refusal{http.StatusBadRequest, "host_twice", "there is more than one Host header"}
	errHost        = &refusal{http.StatusBadRequest, "host_malformed", "the Host header is malformed"}
	errHostDiffers = &refusal{http.StatusBadRequest, "host_differs", "the request target names another host than the Host header"}
	errLengthTwice = &refusal{http.StatusBadRequest, "content_length_twice", "there is more than one Content-Length"}
	errLength      = &refusal{http.StatusBadRequest, "content_length", "the Content-Length is no number"}
	errBothLengths = &refusal{http.StatusBadRequest, "length_and_encoding", "Content-Length and Transfer-Encoding exclude each other"}
	errEncoding    = &refusal{http.StatusNotImplemented, "transfer_encoding", "the only Transfer-Encoding taken is chunked"}
	errEncodingOld = &refusal{http.StatusBadRequest, "transfer_encoding_old", "HTTP/1.0 has no Transfer-Encoding"}
	errExpect      = &refusal{http.StatusExpectationFailed, "expectation", "the only expectation known is 100-continue"}
	errSlow        = &refusal{http.StatusRequestTimeout, "header_too_slow", "the header took too long"}
)

// Character classes of RFC 9110 and RFC 3986.
const (
	isToken  = 1 << iota // of a field name or a method
	isUpper              // what a canonical name has only at the beginning of a word
	isValue              // of a field value
	isTarget             // of a request target
	isPlain              // of a path that needs no parsing
	isHost               // of a Host
)

var class = func() (t [256]byte) {
	set := func(bit byte, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= bit
		}
	}
	const upper, alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	set(isToken, alnum+"!#$%&'*+-.^_`|~")
	set(isUpper, upper)
	set(isPlain, alnum+"/-._~")
	set(isHost, alnum+"-._~!$&'()*+,;=%:[]")
	for c := 0x21; c < 0x7f; c++ {
		t[c] |= isValue | isTarget
	}
	t['#'] &^= isTarget
	t[' '] |= isValue
	t['\t'] |= isValue
	for c := 0x80; c < 0x100; c++ {
		t[c] |= isValue
	}
	return t
}()

func all(b []byte, bit byte) bool {
	for _, c := range b {
		if class[c]&bit == 0 {
			return false
		}
	}
	return len(b) > 0
}

// field is one line of the header. Value is part of line, which no buffer shares.
type field struct {
	line, name, value string
}

// head is the head of one request. It is read line by line as the bytes come in, and keeps the lines of the request before
// it: on one connection they are mostly the same, and what is the same was judged already.
type head struct {
	requestLine string
	method      string
	target      string
	minor       int
	fields      []field
	n           int // fields of this request; those beyond are of the one before

	host      string
	hosts     int
	length    int64 // -1 when the body is chunked or there is none
	lengths   int
	encodings int
	encoding  string
	close     bool
	keep      bool
	expect    string
	trailer   bool

	pos, scan int // the beginning of the line that is read, and from where its end is looked for
	begun     bool
}

// reset prepares for the next request.
func (h *head) reset() {
	h.n, h.pos, h.scan, h.begun = 0, 0, 0, false
	h.host, h.hosts, h.length, h.lengths, h.encodings, h.encoding = "", 0, -1, 0, 0, ""
	h.close, h.keep, h.expect, h.trailer = false, false, "", false
}

// forget gives up what was kept of the request before.
func (h *head) forget() {
	*h = head{length: -1}
}

// parse goes on reading the head at the beginning of b, of which it has seen a part before. It returns the length of the
// head when that is complete and 0 when bytes are missing.
func (h *head) parse(b []byte, maxBytes, maxFields int) (int, *refusal) {
	for {
		i := bytes.IndexByte(b[h.scan:], '\n')
		if i < 0 {
			h.scan = len(b)
			switch {
			case len(b) >= maxBytes:
				return 0, errHeadLarge
			case !h.begun && len(b) > maxTarget+maxMethod+16:
				return 0, errTargetLong
			}
			return 0, nil
		}
		end := h.scan + i
		line := b[h.pos:end]
		h.pos, h.scan = end+1, end+1
		if end+1 > maxBytes {
			return 0, errHeadLarge
		}
		if len(line) == 0 || line[len(line)-1] != '\r' {
			return 0, errLineEnd
		}
		line = line[:len(line)-1]
		switch {
		case !h.begun:
			h.begun = true
			if r := h.first(line); r != nil {
				return 0, r
			}
		case len(line) == 0:
			return h.pos, h.judge()
		case h.n == maxFields:
			return 0, errFields
		default:
			if r := h.field(line); r != nil {
				return 0, r
			}
		}
	}
}

// first reads the request line.
func (h *head) first(line []byte) *refusal {
	if string(line) == h.requestLine && len(line) > 0 {
		return nil
	}
	h.requestLine = ""
	method, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || !all(method, isToken) || len(method) > maxMethod {
		return errLine
	}
	i := bytes.LastIndexByte(rest, ' ')
	if i < 0 {
		return errLine
	}
	target, version := rest[:i], rest[i+1:]
	switch {
	case string(version) == "HTTP/1.1":
		h.minor = 1
	case string(version) == "HTTP/1.0":
		h.minor = 0
	case len(version) == 8 && bytes.HasPrefix(version, []byte("HTTP/")) && version[6] == '.':
		return errVersion
	default:
		return errLine
	}
	switch {
	case len(target) > maxTarget:
		return errTargetLong
	case !all(target, isTarget):
		return errTarget
	}
	kept := string(line)
	h.method, h.target = kept[:len(method)], kept[len(method)+1:][:len(target)]
	if !targetOK(h.method, h.target) {
		return errTarget
	}
	h.requestLine = kept
	return nil
}

// targetOK takes the forms of RFC 9112, section 3.2, but for the authority form: nothing is tunnelled.
func targetOK(method, target string) bool {
	switch {
	case target[0] == '/':
		return true
	case target == "*":
		return method == http.MethodOptions
	}
	return method != http.MethodConnect && (absolute(target) > 0)
}

// absolute returns the length of "http://" or "https://" at the beginning of a target, 0 when there is none.
func absolute(target string) int {
	for _, scheme := range []string{"http://", "https://"} {
		if len(target) > len(scheme) && strings.EqualFold(target[:len(scheme)], scheme) {
			return len(scheme)
		}
	}
	return 0
}

// field reads one field line.
func (h *head) field(line []byte) *refusal {
	if h.n < len(h.fields) && h.fields[h.n].line == string(line) {
		f := &h.fields[h.n]
		h.n++
		return h.note(f.line, f.name, f.value)
	}
	if line[0] == ' ' || line[0] == '\t' {
		return errFold
	}
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 {
		return errFieldName
	}
	name, ok := canonical(line[:colon])
	if !ok {
		return errFieldName
	}
	for _, c := range line[colon+1:] {
		if class[c]&isValue == 0 {
			return errFieldValue
		}
	}
	f := field{line: string(line), name: name}
	f.value = strings.Trim(f.line[colon+1:], " \t")
	if h.n < len(h.fields) {
		h.fields[h.n] = f
	} else {
		h.fields = append(h.fields, f)
	}
	h.n++
	return h.note(f.line, f.name, f.value)
}

// names are the names that clients send, in the form that Go's headers have. A name that is not among them costs two
// allocations.
var names = func() map[string]string {
	m := map[string]string{}
	for _, n := range []string{
		"Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Authorization", "Baggage", "Cache-Control", "Connection",
		"Content-Encoding", "Content-Length", "Content-Type", "Cookie", "Date", "Dpop", "Expect", "Forwarded", "Host", "Keep-Alive",
		"Last-Event-Id", "Mcp-Method", "Mcp-Name", "Mcp-Protocol-Version", "Mcp-Session-Id", "Origin", "Pragma", "Priority", "Referer",
		"Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site", "Te", "Traceparent", "Tracestate", "Trailer", "Transfer-Encoding", "Upgrade",
		"User-Agent", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-Ip", "X-Request-Id",
	} {
		m[n], m[strings.ToLower(n)] = n, n
	}
	m["MCP-Protocol-Version"], m["Last-Event-ID"] = "Mcp-Protocol-Version", "Last-Event-Id"
	return m
}()

func canonical(b []byte) (string, bool) {
	if n, ok := names[string(b)]; ok {
		return n, true
	}
	if !all(b, isToken) {
		return "", false
	}
	return textproto.CanonicalMIMEHeaderKey(string(b)), true
}

// note keeps what the framing goes by.
func (h *head) note(line, name, value string) *refusal {
	switch name {
	case "Host":
		h.hosts++
		h.host = value
	case "Content-Length":
		h.lengths++
		n, ok := number(value)
		if !ok {
			return errLength
		}
		h.length = n
	case "Transfer-Encoding":
		h.encodings++
		h.encoding = value
		if len(line)-len(value) > len(name)+len(": ") {
			return errEncoding // more space than anybody writes who does not try how it is read
		}
	case "Connection":
		if value == "keep-alive" {
			h.keep = true
			return nil
		}
		for v := range strings.SplitSeq(value, ",") {
			v = strings.Trim(v, " \t")
			h.close = h.close || strings.EqualFold(v, "close")
			h.keep = h.keep || strings.EqualFold(v, "keep-alive")
		}
	case "Expect":
		h.expect = value
	case "Trailer":
		h.trailer = true
	}
	return nil
}

// number reads digits and nothing else.
func number(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// judge looks at what only the whole head shows (RFC 9112, sections 3.2 and 6).
func (h *head) judge() *refusal {
	switch {
	case h.hosts == 0:
		return errHostMissing
	case h.hosts > 1:
		return errHostTwice
	case !hostOK(h.host):
		return errHost
	case h.lengths > 1:
		return errLengthTwice
	case h.encodings > 0 && h.lengths > 0:
		return errBothLengths
	case h.encodings > 0 && h.minor == 0:
		return errEncodingOld
	case h.encodings > 1 || h.encodings == 1 && !strings.EqualFold(h.encoding, "chunked"):
		return errEncoding
	case h.expect != "" && h.minor == 1 && !strings.EqualFold(h.expect, "100-continue"):
		return errExpect
	}
	if n := absolute(h.target); n > 0 {
		authority := h.target[n:]
		if i := strings.IndexAny(authority, "/?"); i >= 0 {
			authority = authority[:i]
		}
		if !strings.EqualFold(authority, h.host) {
			return errHostDiffers
		}
	}
	return nil
}

func hostOK(host string) bool {
	for i := range len(host) {
		if class[host[i]]&isHost == 0 {
			return false
		}
	}
	return host != ""
}

func (h *head) chunked() bool { return h.encodings > 0 }

// persists reports whether the client would send another request on this connection.
func (h *head) persists() bool { return !h.close && (h.minor == 1 || h.keep) }
