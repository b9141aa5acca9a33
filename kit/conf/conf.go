// Package conf reads a configuration file into one typed struct. It promises that nothing in the file is ignored: every
// key that the struct does not know is reported with its line and the key that was probably meant, together with every
// value of a wrong type, every setting that a section itself refuses and every secret that cannot be read. A file is
// either taken whole or not at all.
//
// A section may have two methods, both found wherever the section stands: Defaults sets what holds when the file is
// silent, and Problems judges what the file says. Secrets are never written in the file: a field password of type
// secret.Value is given as password_file, the name of a file that holds it.
package conf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// maxSize bounds a file; the largest sensible one is a hundred times smaller.
const maxSize = 1 << 20

// Validator is a section that judges its own values. Each text names the key first: "port: must be at most 65535".
type Validator interface {
	Problems() []string
}

// Defaulter is a section that sets its values before the file is read; it has a pointer receiver.
type Defaulter interface {
	Defaults()
}

// Source is where a configuration comes from.
type Source struct {
	// Name is how messages call it, usually the path.
	Name string
	// Dir is what relative names of secret files start from.
	Dir  string
	Data []byte
	// Env looks a variable up; nil means that there are none. A variable overrides a scalar key of a section: with the
	// prefix MCPVAULT, MCPVAULT_DATABASE_URL overrides the key url of the section database.
	Env    func(string) (string, bool)
	Prefix string
}

// Load reads the YAML file at path into a T. An empty path means defaults and environment only; an empty prefix means
// that the environment is not looked at. Every error is a problem.Problem: not_found when there is no such file, invalid
// when it cannot be taken.
func Load[T any](path, prefix string) (T, error) {
	src := Source{Name: "the configuration", Prefix: prefix}
	if prefix != "" {
		src.Env = os.LookupEnv
	}
	if path != "" {
		data, err := readBounded(path, maxSize)
		if os.IsNotExist(err) {
			var none T
			return none, problem.Newf(problem.NotFound, "check the path", "there is no configuration file %s", path)
		}
		if err != nil {
			var none T
			return none, problem.Newf(problem.Invalid, "check the path and its permissions", "the configuration file %s cannot be read", path).Because(err)
		}
		src.Name, src.Dir, src.Data = path, filepath.Dir(path), data
	}
	return Parse[T](src)
}

// Parse is Load for bytes that are at hand.
func Parse[T any](src Source) (T, error) {
	var out T
	d := decoder{src: src, lines: map[string]int{}}
	v := reflect.ValueOf(&out).Elem()
	defaults(v)
	if root := d.parse(); root != nil {
		d.value(root, v, "")
	}
	if src.Env != nil && src.Prefix != "" {
		d.environment(v, "", src.Prefix)
	}
	d.validate(v, "")
	if len(d.issues) > 0 {
		var none T
		return none, d.problem()
	}
	return out, nil
}

// parse returns the document's root, nil when it is empty or cannot be read.
func (d *decoder) parse() *yaml.Node {
	if len(d.src.Data) > maxSize {
		d.report(0, "", "is larger than 1 MiB")
		return nil
	}
	dec := yaml.NewDecoder(strings.NewReader(string(d.src.Data)))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		d.issues = append(d.issues, strings.TrimPrefix(err.Error(), "yaml: "))
		return nil
	}
	if err := dec.Decode(&next); !errors.Is(err, io.EOF) {
		d.report(next.Line, "", "a second document is not read; remove it")
	}
	if len(doc.Content) != 1 || !d.plain(doc.Content[0], 0) {
		return nil
	}
	return doc.Content[0]
}

// plain refuses what makes a file mean more than it shows.
func (d *decoder) plain(n *yaml.Node, depth int) bool {
	const maxDepth = 32
	switch {
	case depth > maxDepth:
		d.report(n.Line, "", "is nested too deeply")
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.report(n.Line, "", "anchors and aliases are not supported; write the value out")
		return false
	}
	for _, c := range n.Content {
		if !d.plain(c, depth+1) {
			return false
		}
	}
	return true
}

// report adds an issue; line 0 means that none is known.
func (d *decoder) report(line int, path, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if path != "" {
		text = path + ": " + text
	}
	if line > 0 {
		text = fmt.Sprintf("line %d: %s", line, text)
	}
	d.issues = append(d.issues, text)
}

func (d *decoder) problem() *problem.Problem {
	count := "1 problem"
	if n := len(d.issues); n > 1 {
		count = fmt.Sprintf("%d problems", n)
	}
	return problem.Newf(problem.Invalid, strings.Join(d.issues, "\n"), "%s has %s", d.src.Name, count)
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, limit+1))
}
