package mcp

import "bytes"

// where says which object is being read, for the keys that mean something there.
type where uint8

const (
	inOther where = iota
	inTop
	inParams
	inMeta
	inInfo
	inResult
)

// keySet finds repeated keys of one object. Small objects compare with the hashes on the scanner's stack; a wide one
// gets a map.
type keySet struct {
	base, n int
	wide    map[uint64]struct{}
}

func (k *keySet) repeats(s *scanner, h uint64) bool {
	const narrow = 32
	if k.wide != nil {
		if _, dup := k.wide[h]; dup {
			return true
		}
		k.wide[h] = struct{}{}
		return false
	}
	for _, x := range s.hashes[k.base:] {
		if x == h {
			return true
		}
	}
	s.hashes = append(s.hashes, h)
	if len(s.hashes)-k.base > narrow {
		k.wide = make(map[uint64]struct{}, 2*narrow)
		for _, x := range s.hashes[k.base:] {
			k.wide[x] = struct{}{}
		}
	}
	return false
}

// slot says where the value of a key is kept and what kind of object it is, and notes a key that a sloppy reader would
// take for a protocol key.
func (s *scanner) slot(w where, key []byte) (*Span, where) {
	if w == inOther {
		return nil, inOther
	}
	m := &s.m
	var slot *Span
	child := inOther
	switch w {
	case inTop:
		switch string(key) {
		case "jsonrpc":
			slot = &m.jsonrpc
		case "id":
			slot = &m.id
		case "method":
			slot = &m.method
		case "params":
			slot, child = &m.Params, inParams
		case "result":
			slot, child = &m.Result, inResult
		case "error":
			slot = &m.Error
		}
	case inParams:
		slot, child = s.paramSlot(key)
	case inMeta:
		slot, child = s.metaSlot(key)
	case inInfo:
		switch string(key) {
		case "name":
			slot = &m.clientName
		case "version":
			slot = &m.clientVersion
		}
	case inResult:
		switch string(key) {
		case "isError":
			slot = nil
			s.peekIsError()
		case "resultType":
			slot = &m.ResultType
		}
		return slot, inOther
	case inOther:
	}
	if slot == nil && s.strict && foldsToProtocolKey(w, key) {
		s.note(CodeInvalidRequest, "case_variant_key", "the body spells a protocol key in another case")
	}
	return slot, child
}

// peekIsError looks past the colon for true; the value itself is scanned by the caller.
func (s *scanner) peekIsError() {
	rest := bytes.TrimLeft(s.b[s.i:], " \t\r\n")
	if len(rest) > 0 && rest[0] == ':' {
		s.m.IsError = bytes.HasPrefix(bytes.TrimLeft(rest[1:], " \t\r\n"), []byte("true"))
	}
}

func (s *scanner) paramSlot(key []byte) (*Span, where) {
	m := &s.m
	switch string(key) {
	case "name":
		return &m.name, inOther
	case "uri":
		return &m.uri, inOther
	case "taskId":
		return &m.taskID, inOther
	case "arguments":
		return &m.Arguments, inOther
	case "_meta":
		return &m.Meta, inMeta
	case "cursor":
		return &m.Cursor, inOther
	case "requestState":
		return &m.RequestState, inOther
	case "protocolVersion":
		return &m.InitVersion, inOther
	case "capabilities":
		return &m.InitCapabilities, inOther
	case "clientInfo":
		return &m.InitInfo, inInfo
	}
	return nil, inOther
}

func (s *scanner) metaSlot(key []byte) (*Span, where) {
	m := &s.m
	switch string(key) {
	case MetaVersion:
		return &m.Version, inOther
	case MetaCapabilities:
		return &m.Capabilities, inOther
	case MetaClientInfo:
		return &m.Info, inInfo
	case "progressToken":
		return &m.ProgressToken, inOther
	case "traceparent":
		return &m.TraceParent, inOther
	case "tracestate":
		return &m.TraceState, inOther
	case "baggage":
		return &m.Baggage, inOther
	}
	return nil, inOther
}

// foldsToProtocolKey compares under Unicode's simple folding, as case-insensitive readers do: the long s and the Kelvin
// sign count.
func foldsToProtocolKey(w where, key []byte) bool {
	for _, known := range protocolKeys(w) {
		if len(key) >= len(known) && len(key) <= 3*len(known) && bytes.EqualFold(key, []byte(known)) {
			return true
		}
	}
	return false
}

func protocolKeys(w where) []string {
	switch w {
	case inTop:
		return []string{"jsonrpc", "id", "method", "params", "result", "error"}
	case inParams:
		return []string{
			"name", "uri", "taskId", "arguments", "_meta", "cursor", "requestState", "protocolVersion", "capabilities",
			"clientInfo",
		}
	case inMeta:
		return []string{
			MetaVersion, MetaCapabilities, MetaClientInfo, "progressToken", "traceparent", "tracestate", "baggage",
		}
	case inInfo:
		return []string{"name", "version"}
	default:
		return nil
	}
}
