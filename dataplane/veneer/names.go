package veneer

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"sync"
)

// MaxName bounds a tool's name as clients accept it.
const MaxName = 128

const separator = "__"

// Tool names a tool by where it is.
type Tool struct{ Server, Name string }

// Names are the names that a tenant's aggregate shows: server__tool, with a hash of both at the end where that is too
// long or stands for two tools. A name that already begins with its server's is left alone. A name depends on what the
// tenant has published and on nothing about the caller.
type Names struct {
	shown map[Tool]string
	tools map[string]Tool
}

// NewNames names all tools.
func NewNames(tools []Tool) *Names {
	n := &Names{shown: make(map[Tool]string, len(tools)), tools: make(map[string]Tool, len(tools))}
	claims := make(map[string]int, len(tools))
	for _, t := range tools {
		claims[plain(t)]++
	}
	for _, t := range tools {
		name := plain(t)
		if len(name) > MaxName || claims[name] > 1 {
			name = hashed(name, t)
		}
		n.shown[t] = name
		n.tools[name] = t
	}
	return n
}

// Shown is the name of a tool; "" when it is not published.
func (n *Names) Shown(t Tool) string { return n.shown[t] }

// Find is the tool behind a name.
func (n *Names) Find(name string) (Tool, bool) {
	t, ok := n.tools[name]
	return t, ok
}

func plain(t Tool) string {
	if strings.HasPrefix(t.Name, t.Server+separator) {
		return t.Name
	}
	return t.Server + separator + t.Name
}

func hashed(name string, t Tool) string {
	const digits = 12
	sum := sha256.Sum256([]byte(t.Server + "\x00" + t.Name))
	if limit := MaxName - 1 - digits; len(name) > limit {
		name = strings.ToValidUTF8(name[:limit], "")
	}
	return name + "_" + hex.EncodeToString(sum[:digits/2])
}

// Cache keeps the Names of each tenant's newest generation, which it is told apart by.
type Cache[K comparable] struct {
	mu sync.Mutex
	m  map[string]cached[K] // guarded by mu
}

type cached[K comparable] struct {
	version K
	names   *Names
}

// Get returns the names of a tenant at a version, making them from tools when they are not at hand.
func (c *Cache[K]) Get(tenant string, version K, tools func() []Tool) *Names {
	c.mu.Lock()
	defer c.mu.Unlock()
	if got, ok := c.m[tenant]; ok && got.version == version {
		return got.names
	}
	n := NewNames(tools())
	if c.m == nil {
		c.m = map[string]cached[K]{}
	}
	c.m[tenant] = cached[K]{version, n}
	return n
}
