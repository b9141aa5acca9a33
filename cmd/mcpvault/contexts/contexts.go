// Package contexts is the CLI's own file: which control plane and which cells it talks to, and the tokens it may use. It
// promises that a saved file is readable by its owner only, is replaced in one step, and comes back as it was saved.
package contexts

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"gopkg.in/yaml.v3"

	"github.com/mcpvault/mcpvault/kit/problem"
)

// maxFile bounds what is read: a context is a few kilobytes.
const maxFile = 1 << 20

// DevDataDir is where `mcpvault dev` keeps its data when it is not told otherwise.
const DevDataDir = ".mcpvault"

// DevFile is the name of the file that `mcpvault dev` leaves in its data directory.
const DevFile = "cli.yaml"

// Context is one installation and one person's access to it.
type Context struct {
	AdminURL string `yaml:"admin_url"`
	// AdminToken is used for administration when no person is named.
	AdminToken string `yaml:"admin_token,omitempty"`
	// CAFile holds the certificates, PEM, that TLS servers are checked against; "" for the system's.
	CAFile string `yaml:"ca_file,omitempty"`
	// RootsFile holds the signed root keys that snapshots are checked against.
	RootsFile string `yaml:"roots_file,omitempty"`
	// MCPURLs are the aggregate endpoints of the cells' nodes, ending in /mcp, the nearest first.
	MCPURLs []string `yaml:"mcp_urls,omitempty"`
	// Tenant is the organisation that commands mean when --org is not given; "" for the token's own.
	Tenant string `yaml:"tenant,omitempty"`
	// Hosts maps a tenant to its public host name, for cells that are reached by address.
	Hosts map[string]string `yaml:"hosts,omitempty"`
	// Tokens holds an access token for each person that --as may name.
	Tokens map[string]string `yaml:"tokens,omitempty"`
	// As is the person that calls are made as when --as is not given.
	As string `yaml:"as,omitempty"`
}

// String keeps tokens out of logs.
func (c *Context) String() string { return c.AdminURL }

// GoString keeps tokens out of %#v.
func (c *Context) GoString() string { return "contexts.Context(" + c.AdminURL + ")" }

// File is the whole file.
type File struct {
	Current  string              `yaml:"current"`
	Contexts map[string]*Context `yaml:"contexts"`
}

// Names returns the contexts' names, sorted.
func (f *File) Names() []string { return slices.Sorted(maps.Keys(f.Contexts)) }

// Get returns the named context, or the current one for "". A missing one is problem.NotFound.
func (f *File) Get(name string) (*Context, error) {
	if name == "" {
		name = f.Current
	}
	if name == "" {
		return nil, problem.New(problem.NotFound, "no context is chosen",
			"start one with `mcpvault dev`, or log in with `mcpvault login --addr URL`")
	}
	c := f.Contexts[name]
	if c == nil {
		return nil, problem.Newf(problem.NotFound, "mcpvault context list", "context %q does not exist", name)
	}
	return c, nil
}

// Set adds or replaces a context; the first one becomes the current one.
func (f *File) Set(name string, c *Context) {
	if f.Contexts == nil {
		f.Contexts = map[string]*Context{}
	}
	f.Contexts[name] = c
	if f.Current == "" {
		f.Current = name
	}
}

// Remove takes a context out. A missing one is problem.NotFound.
func (f *File) Remove(name string) error {
	if _, ok := f.Contexts[name]; !ok {
		return problem.Newf(problem.NotFound, "mcpvault context list", "context %q does not exist", name)
	}
	delete(f.Contexts, name)
	if f.Current == name {
		f.Current = ""
	}
	return nil
}

// Load reads the file at path. A file that does not exist is an empty one.
func Load(path string) (*File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &File{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open contexts: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	file, err := parse(raw)
	if err != nil {
		return nil, problem.Newf(problem.Invalid, "repair or remove the file, then log in again",
			"%s is not a contexts file: %v", path, err)
	}
	return file, nil
}

func parse(raw []byte) (*File, error) {
	if len(raw) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	file := &File{}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	dec.KnownFields(true)
	if err := dec.Decode(file); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for name, c := range file.Contexts {
		if c == nil {
			return nil, fmt.Errorf("context %q is empty", name)
		}
	}
	return file, nil
}

// Save writes the file, 0600, in one step.
func Save(path string, file *File) error {
	raw, err := yaml.Marshal(file)
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".contexts-*")
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // Gone already when all went well.
	_, err = tmp.Write(raw)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	return nil
}

// Locate says which file the CLI uses: the one named by MCPVAULT_CONFIG, else the user's own when it has a context, else
// the one that `mcpvault dev` left below dir, else the user's own.
func Locate(getenv func(string) string, dir string) string {
	if p := getenv("MCPVAULT_CONFIG"); p != "" {
		return p
	}
	own := userFile(getenv)
	if f, err := Load(own); own != "" && (err != nil || len(f.Contexts) > 0) {
		return own
	}
	dev := filepath.Join(dir, DevDataDir, DevFile)
	if _, err := os.Stat(dev); err == nil {
		return dev
	}
	if own == "" {
		return dev
	}
	return own
}

func userFile(getenv func(string) string) string {
	base := getenv("XDG_CONFIG_HOME")
	if base == "" {
		home := getenv("HOME")
		if home == "" {
			return ""
		}
		base = filepath.Join(home, ".config")
	}
	return filepath.Join(base, "mcpvault", "config.yaml")
}
