package mcpclient

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// property is what typing needs to know of a JSON Schema.
type property struct {
	Type       json.RawMessage     `json:"type"`
	Header     string              `json:"x-mcp-header"`
	Properties map[string]property `json:"properties"`
}

func (p property) types() []string {
	var one string
	if json.Unmarshal(p.Type, &one) == nil {
		return []string{one}
	}
	var many []string
	_ = json.Unmarshal(p.Type, &many) // A type of another form says nothing.
	return many
}

// Arguments makes a tool's arguments from key=value words. Each value gets the type that the schema names; where the
// schema says nothing (or there is none, because the tool is not shown to the caller) a value that reads as a JSON number,
// boolean, null, array or object is one, and anything else is a string. A word that does not fit is problem.Invalid.
func Arguments(words []string, schema json.RawMessage) (json.RawMessage, error) {
	var root property
	if len(schema) > 0 {
		_ = json.Unmarshal(schema, &root) // A schema that is not to be read types nothing.
	}
	args := map[string]json.RawMessage{}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, problem.Newf(problem.Invalid, "write key=value, for example message=hi", "%q is not an argument", w)
		}
		if _, twice := args[key]; twice {
			return nil, problem.Newf(problem.Invalid, "give it once", "argument %q is given twice", key)
		}
		raw, err := typed(key, value, root.Properties[key].types())
		if err != nil {
			return nil, err
		}
		args[key] = raw
	}
	return marshal(args)
}

func typed(key, value string, types []string) (json.RawMessage, error) {
	if len(types) == 0 {
		if raw := []byte(value); json.Valid(raw) && !bytes.HasPrefix(bytes.TrimSpace(raw), []byte(`"`)) {
			return raw, nil
		}
		return marshal(value)
	}
	for _, t := range types {
		if t != "string" && fits(value, t) {
			return json.RawMessage(strings.TrimSpace(value)), nil
		}
	}
	if slices.Contains(types, "string") {
		return marshal(value)
	}
	return nil, problem.Newf(problem.Invalid, "see the tool's schema with `mcpvault mcp list -o json`",
		"argument %s must be of type %s, not %q", key, strings.Join(types, " or "), value)
}

// fits reports whether the text is a JSON value of the type. Numbers stay as they were written: no rounding.
func fits(value, kind string) bool {
	dec := json.NewDecoder(strings.NewReader(value))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil || dec.More() {
		return false
	}
	switch v := v.(type) {
	case json.Number:
		return kind == "number" || (kind == "integer" && !strings.ContainsAny(v.String(), ".eE"))
	case bool:
		return kind == "boolean"
	case nil:
		return kind == "null"
	case []any:
		return kind == "array"
	case map[string]any:
		return kind == "object"
	}
	return false
}

// paramHeaders returns the headers that a schema wants arguments repeated in (x-mcp-header).
func paramHeaders(schema, arguments json.RawMessage) map[string]string {
	var root property
	if len(schema) == 0 || json.Unmarshal(schema, &root) != nil {
		return nil
	}
	headers := map[string]string{}
	collectHeaders(root.Properties, arguments, headers)
	return headers
}

func collectHeaders(props map[string]property, arguments json.RawMessage, headers map[string]string) {
	var args map[string]json.RawMessage
	if json.Unmarshal(arguments, &args) != nil {
		return
	}
	for name, p := range props {
		raw, ok := args[name]
		if !ok {
			continue
		}
		if p.Header != "" {
			if v, ok := headerText(raw); ok {
				headers["Mcp-Param-"+p.Header] = v
			}
		}
		if len(p.Properties) > 0 {
			collectHeaders(p.Properties, raw, headers)
		}
	}
}

func headerText(raw json.RawMessage) (string, bool) {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if dec.Decode(&v) != nil {
		return "", false
	}
	switch v := v.(type) {
	case string:
		return headerValue(v), true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	}
	return "", false
}

// headerValue writes a value so that HTTP can carry it: as it is when it is printable ASCII, else in base64 between the
// revision's marks.
func headerValue(s string) string {
	const prefix, suffix = "=?base64?", "?="
	disguised := strings.HasPrefix(s, prefix) && strings.HasSuffix(s, suffix)
	plain := s == strings.TrimSpace(s) && !disguised &&
		!strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
	if plain {
		return s
	}
	return prefix + base64.StdEncoding.EncodeToString([]byte(s)) + suffix
}

// SplitTool reads SERVER/TOOL. The tool's name may have slashes of its own.
func SplitTool(s string) (server, tool string, err error) {
	server, tool, ok := strings.Cut(s, "/")
	if !ok || server == "" || tool == "" {
		return "", "", problem.New(problem.Invalid, fmt.Sprintf("%q does not name a tool", s), "write SERVER/TOOL, for example demo/echo")
	}
	return server, tool, nil
}
