// Package secret holds values that must never be printed. It promises that no formatting verb, encoder or logger shows
// what is inside; whoever needs the bytes asks for them by name, where a reader can see it.
package secret

import "log/slog"

const mask = "[secret]"

// Value is a secret's bytes.
type Value struct{ b []byte }

// New copies b.
func New(b []byte) Value { return Value{append([]byte(nil), b...)} }

// Reveal returns the bytes themselves, not a copy: they must not be kept, logged or written to.
func (v Value) Reveal() []byte { return v.b }

// IsZero reports whether there is no secret.
func (v Value) IsZero() bool { return len(v.b) == 0 }

// String prints the mask.
func (Value) String() string { return mask }

// GoString prints the mask for %#v.
func (Value) GoString() string { return mask }

// MarshalText makes every text encoder (JSON, YAML) write the mask.
func (Value) MarshalText() ([]byte, error) { return []byte(mask), nil }

// LogValue makes slog write the mask.
func (Value) LogValue() slog.Value { return slog.StringValue(mask) }
