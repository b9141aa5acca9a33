// Package output prints what a command found: as a table for people, as JSON or YAML for programs, as CSV for spreadsheets, or as bare names for
// shells. It promises that a value from a server cannot move the reader's cursor or colour the terminal: control
// characters are shown, not sent.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// Format is how data is printed.
type Format string

// The formats of -o.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
	CSV   Format = "csv"
	Name  Format = "name"
)

// Formats are all formats, in the order of the help text.
func Formats() []string {
	return []string{string(Table), string(Wide), string(JSON), string(YAML), string(CSV), string(Name)}
}

// Parse reads a format's name. An unknown one is problem.Invalid.
func Parse(s string) (Format, error) {
	switch f := Format(s); f {
	case Table, Wide, JSON, YAML, CSV, Name:
		return f, nil
	case "":
		return Table, nil
	}
	return "", problem.Newf(problem.Invalid, "use one of "+strings.Join(Formats(), ", "), "unknown output format %q", s)
}

// Column is one column of a table.
type Column[T any] struct {
	Head string
	Cell func(T) string
	// Wide columns are shown with -o wide only.
	Wide bool
}

// List prints rows. The first column is the row's name. An empty list prints the heads only, so that a reader sees that
// the question was answered.
func List[T any](w io.Writer, f Format, rows []T, columns ...Column[T]) error {
	switch f {
	case JSON, YAML:
		if rows == nil {
			rows = []T{}
		}
		return Value(w, f, rows)
	case Name:
		for _, r := range rows {
			if _, err := fmt.Fprintln(w, Clean(columns[0].Cell(r))); err != nil {
				return err
			}
		}
		return nil
	case CSV:
		return writeCSV(w, rows, columns)
	default: // Tables.
	}
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	line := func(cell func(Column[T]) string) {
		var cells []string
		for _, c := range columns {
			if !c.Wide || f == Wide {
				cells = append(cells, cell(c))
			}
		}
		_, _ = fmt.Fprintln(tw, strings.TrimRight(strings.Join(cells, "\t"), "\t ")) // Flush has the error.
	}
	line(func(c Column[T]) string { return c.Head })
	for _, r := range rows {
		line(func(c Column[T]) string { return cell(c.Cell(r)) })
	}
	return tw.Flush()
}

// One prints a single thing: one line per column in a table.
func One[T any](w io.Writer, f Format, v T, columns ...Column[T]) error {
	switch f {
	case JSON, YAML:
		return Value(w, f, v)
	case Name:
		_, err := fmt.Fprintln(w, Clean(columns[0].Cell(v)))
		return err
	case CSV:
		return writeCSV(w, []T{v}, columns)
	default: // Tables.
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range columns {
		if !c.Wide || f == Wide {
			_, _ = fmt.Fprintf(tw, "%s:\t%s\n", strings.ToLower(c.Head), cell(c.Cell(v))) // Flush has the error.
		}
	}
	return tw.Flush()
}

// Value prints v as JSON or YAML, with the names of its JSON form in both.
func Value(w io.Writer, f Format, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if f == YAML {
		// JSON is YAML: reading it back as a node keeps the order of the fields.
		var node yaml.Node
		if err := yaml.Unmarshal(buf.Bytes(), &node); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		plain(&node)
		buf.Reset()
		ye := yaml.NewEncoder(&buf)
		ye.SetIndent(2)
		if err := ye.Encode(&node); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	_, err := buf.WriteTo(w)
	return err
}

// Line prints v as JSON on one line.
func Line(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// plain takes JSON's braces and quotes off; the encoder puts quotes back where YAML needs them.
func plain(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}

func cell(s string) string {
	if s == "" {
		return "-"
	}
	return Clean(s)
}

// Clean makes a string safe for a terminal: control and format characters are written as escapes.
func Clean(s string) string {
	if !strings.ContainsFunc(s, hidden) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hidden(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// CleanText is Clean for text of several lines: line feeds and tabs stay.
func CleanText(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		parts := strings.Split(l, "\t")
		for j := range parts {
			parts[j] = Clean(parts[j])
		}
		lines[i] = strings.Join(parts, "\t")
	}
	return strings.Join(lines, "\n")
}

func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar
}

// Map turns each of what was received into what is printed; nothing becomes an empty list.
func Map[T, U any](in []T, f func(T) U) []U {
	out := make([]U, 0, len(in))
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

// Keys are a map's keys, sorted; never nil, so that an empty list is printed as one.
func Keys(m map[string]string) []string { return append([]string{}, slices.Sorted(maps.Keys(m))...) }

// Word is the short form of an enumeration's value: EFFECT_READ without EFFECT_ is read.
func Word(s, prefix string) string {
	s = strings.ToLower(strings.TrimPrefix(s, prefix))
	if s == "unspecified" {
		return "unset"
	}
	return s
}

// YesNo prints a truth.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// OrDash prints nothing as a dash, and anything else clean.
func OrDash(s string) string { return cell(s) }

// Time prints milliseconds since the epoch as RFC 3339 in UTC; "" for none.
func Time(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}
