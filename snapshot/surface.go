package snapshot

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Surface is what a server shows a model: the part of it that is approved and pinned. The server's own name and version
// are not part of it, because they change without any change of what a model reads.
type Surface struct {
	Instructions string
	Tools        []SurfaceTool
	// Prompts by name, Resources by URI, Templates by URI template.
	Prompts, Resources, Templates []SurfaceTool
}

// SurfaceTool is one tool, prompt, resource or resource template as the server sent it.
type SurfaceTool struct {
	Name string
	// Raw is the whole object.
	Raw []byte
}

// MaxSurfaceTool bounds one raw tool object in bytes.
const MaxSurfaceTool = 1 << 20

// Digest hashes the content of a surface. The order of tools, the order of members, white space and the way strings are
// escaped do not matter; anything else does, the text of a number included. Something whose object is not strict JSON (a
// name twice, invalid UTF-8) or that is there twice is an error. A surface of tools only has the digest that it had before
// there was anything else.
func (s Surface) Digest() (Digest, error) {
	h := sha256.New()
	field(h, []byte("mcpvault surface v1"))
	field(h, []byte(s.Instructions))
	if err := hashAll(h, "tool", s.Tools); err != nil {
		return Digest{}, err
	}
	for _, list := range []struct {
		noun string
		of   []SurfaceTool
	}{{"prompt", s.Prompts}, {"resource", s.Resources}, {"resource template", s.Templates}} {
		if len(list.of) == 0 {
			continue
		}
		// No tool's name begins with a star, so that no list is taken for the end of another.
		field(h, fmt.Appendf(nil, "*%s %d", list.noun, len(list.of)))
		if err := hashAll(h, list.noun, list.of); err != nil {
			return Digest{}, err
		}
	}
	return Digest(h.Sum(nil)), nil
}

func hashAll(h hash.Hash, noun string, list []SurfaceTool) error {
	list = slices.SortedFunc(slices.Values(list), func(a, b SurfaceTool) int { return cmp.Compare(a.Name, b.Name) })
	for i, t := range list {
		if i > 0 && list[i-1].Name == t.Name {
			return fmt.Errorf("surface: %s %.64q twice", noun, t.Name)
		}
		if noun == "tool" && IsSurface(t.Name) {
			return fmt.Errorf("surface: tool %.64q: no tool's name begins with a star", t.Name)
		}
		raw, err := canonical(t.Raw)
		if err != nil {
			return fmt.Errorf("surface: %s %.64q: %w", noun, t.Name, err)
		}
		field(h, []byte(t.Name))
		field(h, raw)
	}
	return nil
}

// ToolDigest hashes the content of one raw tool object, with the same freedom of form as Surface.Digest.
func ToolDigest(raw []byte) (Digest, error) {
	b, err := canonical(raw)
	if err != nil {
		return Digest{}, fmt.Errorf("tool: %w", err)
	}
	return DigestOf(b), nil
}

// canonical is RFC 8785 but for numbers, which stay as they are: rounding them to doubles would hide changes.
func canonical(raw []byte) ([]byte, error) {
	if len(raw) > MaxSurfaceTool {
		return nil, fmt.Errorf("object of %d bytes: at most %d", len(raw), MaxSurfaceTool)
	}
	v := jsontext.Value(raw).Clone()
	if v.Kind() != '{' {
		return nil, fmt.Errorf("not a JSON object")
	}
	if err := v.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		return nil, fmt.Errorf("not strict JSON: %w", err)
	}
	return v, nil
}

// field writes a length before the bytes, so that no two lists of fields hash the same bytes.
func field(h hash.Hash, b []byte) {
	_, _ = fmt.Fprintf(h, "%d:", len(b))
	_, _ = h.Write(b)
}
