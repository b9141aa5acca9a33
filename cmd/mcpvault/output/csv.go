package output

import (
	"encoding/csv"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// writeCSV prints rows as RFC 4180 has it: every column, wide ones too, under a header that stays the same from release to
// release. Columns without heads get no header: they continue a list.
func writeCSV[T any](w io.Writer, rows []T, columns []Column[T]) error {
	cw := csv.NewWriter(w)
	cw.UseCRLF = true
	line := make([]string, len(columns))
	headed := false
	for i, c := range columns {
		headed = headed || c.Head != ""
		line[i] = strings.ReplaceAll(strings.ToLower(c.Head), " ", "_")
	}
	if headed {
		if err := cw.Write(line); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	for _, r := range rows {
		for i, c := range columns {
			line[i] = field(c.Cell(r))
		}
		if err := cw.Write(line); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	cw.Flush()
	return cw.Error()
}

// field is a value that no spreadsheet takes for a formula: one that begins like a formula gets an apostrophe in front,
// unless it is a plain number.
func field(s string) string {
	s = Clean(s)
	// A spreadsheet may look past spaces; the fullwidth forms are taken for the plain ones in some languages.
	first, _ := utf8.DecodeRuneInString(strings.TrimLeft(s, " \u00a0\u3000"))
	if strings.ContainsRune("=+-@\uff1d\uff0b\uff0d\uff20", first) && !number(s) {
		return "'" + s
	}
	return s
}

// number reports whether s is a sign and digits with at most one point.
func number(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || digits == "" || strings.Count(digits, ".") > 1 {
		return false
	}
	return strings.Trim(digits, "0123456789.") == "" && strings.ContainsAny(digits, "0123456789")
}
