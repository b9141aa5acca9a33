package nearest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// Path is where the control plane and every node tell anybody which cells there are.
const Path = "/.well-known/mcpvault/cells"

// Bounds of a document.
const (
	MaxDocument = 1 << 20
	MaxCells    = 64
	MaxNodes    = 16
	MaxURLs     = 16
	maxName     = 64
	maxURL      = 512
)

// Who has written a document.
const (
	FromControlPlane = "controlplane"
	FromNode         = "node"
)

// Document is the answer at Path: the cells of an installation, as whoever answers knows them.
type Document struct {
	// Source is FromControlPlane or FromNode.
	Source string `json:"source"`
	// AsOf is when the control plane wrote what is said of other cells: long ago while it is lost.
	AsOf time.Time `json:"as_of,omitzero"`
	// Here is the node that answers; nil from the control plane.
	Here *Here `json:"here,omitempty"`
	// Shared are URLs of more than one cell, where something else chooses between them.
	Shared []string `json:"shared_urls"`
	Cells  []Cell   `json:"cells"`
}

// Here is the node that answers.
type Here struct {
	Cell string `json:"cell"`
	Node string `json:"node"`
	// Serving is whether it would serve a call that came to it under this host name.
	Serving bool `json:"serving"`
}

// Cell is one of them.
type Cell struct {
	Name   string `json:"name"`
	Region string `json:"region,omitempty"`
	// Healthy is whether one of its nodes is.
	Healthy bool `json:"healthy"`
	// URLs are those of its nodes that no other cell has.
	URLs  []string `json:"urls"`
	Nodes []Node   `json:"nodes"`
}

// Node is one member of a cell.
type Node struct {
	Name string `json:"name"`
	// URLs are its MCP endpoints, ending in /mcp.
	URLs []string `json:"urls"`
	// HTTP3 says that UDP is served at the https ones.
	HTTP3   bool `json:"http3"`
	Healthy bool `json:"healthy"`
	// Seen is when it was last heard of.
	Seen time.Time `json:"seen,omitzero"`
	// Confirmed is when the control plane last confirmed the policy that it serves.
	Confirmed time.Time `json:"confirmed,omitzero"`
}

// Of writes a directory down. What is over the bounds is left out.
func Of(dir *cellv1.CellDirectory, source string, here *Here) *Document {
	d := &Document{Source: source, AsOf: at(dir.GetAsOfMs()), Here: here, Shared: []string{}, Cells: []Cell{}}
	cells := map[string]map[string]bool{} // by URL
	for _, c := range dir.GetCells()[:min(len(dir.GetCells()), MaxCells)] {
		cell := Cell{Name: c.GetName(), Region: c.GetRegion(), URLs: []string{}, Nodes: []Node{}}
		for _, n := range c.GetNodes()[:min(len(c.GetNodes()), MaxNodes)] {
			node := Node{
				Name: n.GetName(), URLs: []string{}, HTTP3: n.GetHttp3(), Healthy: n.GetHealthy(), Seen: at(n.GetSeenMs()), Confirmed: at(n.GetConfirmedMs()),
			}
			for _, u := range n.GetUrls()[:min(len(n.GetUrls()), MaxURLs)] {
				if checkURL(u) != nil {
					continue
				}
				node.URLs = append(node.URLs, u)
				if cells[u] == nil {
					cells[u] = map[string]bool{}
				}
				cells[u][cell.Name] = true
			}
			cell.Healthy = cell.Healthy || node.Healthy
			cell.Nodes = append(cell.Nodes, node)
		}
		d.Cells = append(d.Cells, cell)
	}
	for i := range d.Cells {
		for _, n := range d.Cells[i].Nodes {
			for _, u := range n.URLs {
				list := &d.Cells[i].URLs
				if len(cells[u]) > 1 {
					list = &d.Shared
				}
				if !slices.Contains(*list, u) {
					*list = append(*list, u)
				}
			}
		}
	}
	return d
}

func at(ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Entry is what a directory says of a node that has reported its status.
func Entry(s *cellv1.NodeStatus, healthy bool, seen time.Time) *cellv1.NodeEntry {
	e := &cellv1.NodeEntry{
		Name: s.GetNode(), Urls: s.GetReach().GetUrls(), Http3: s.GetReach().GetHttp3(), Healthy: healthy, SeenMs: seen.UnixMilli(),
	}
	for i, h := range s.GetApplied() {
		if at := h.GetConfirmedMs(); i == 0 || at < e.GetConfirmedMs() {
			e.ConfirmedMs = at
		}
	}
	return e
}

// Parse reads a document that came from outside and holds it to the bounds.
func Parse(raw []byte) (*Document, error) {
	if len(raw) > MaxDocument {
		return nil, fmt.Errorf("a document of cells is longer than %d bytes", MaxDocument)
	}
	d := &Document{}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(d); err != nil {
		return nil, fmt.Errorf("read the document of cells: %w", err)
	}
	if dec.More() {
		return nil, fmt.Errorf("read the document of cells: something follows it")
	}
	if len(d.Cells) > MaxCells || len(d.Shared) > MaxCells*MaxURLs {
		return nil, fmt.Errorf("a document names %d cells and %d shared addresses: too many", len(d.Cells), len(d.Shared))
	}
	if d.Here != nil && (checkName(d.Here.Cell) != nil || checkName(d.Here.Node) != nil) {
		return nil, fmt.Errorf("a document of cells comes from a node without a good name")
	}
	names := map[string]bool{}
	for _, c := range d.Cells {
		if err := checkCell(c); err != nil {
			return nil, err
		}
		if names[c.Name] {
			return nil, fmt.Errorf("cell %q is named twice", c.Name)
		}
		names[c.Name] = true
	}
	return d, checkURLs(d.Shared)
}

func checkCell(c Cell) error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	if len(c.Nodes) > MaxNodes || len(c.URLs) > MaxNodes*MaxURLs || len(c.Region) > maxName {
		return fmt.Errorf("cell %q is over the bounds", c.Name)
	}
	for _, n := range c.Nodes {
		if err := checkName(n.Name); err != nil {
			return err
		}
		if len(n.URLs) > MaxURLs {
			return fmt.Errorf("node %q of cell %q has too many addresses", n.Name, c.Name)
		}
		if err := checkURLs(n.URLs); err != nil {
			return err
		}
	}
	return checkURLs(c.URLs)
}

func checkName(s string) error {
	if s == "" || len(s) > maxName {
		return fmt.Errorf("%.80q is no name of a cell or node", s)
	}
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '/' {
			return fmt.Errorf("%.80q is no name of a cell or node", s)
		}
	}
	return nil
}

func checkURLs(list []string) error {
	for _, u := range list {
		if err := checkURL(u); err != nil {
			return err
		}
	}
	return nil
}

func checkURL(raw string) error {
	if len(raw) > maxURL {
		return fmt.Errorf("an address is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fmt.Errorf("%.200q is not an address of an MCP endpoint", raw)
	}
	return nil
}

// Page serves a document to anybody. Its answers may be kept for two seconds.
type Page struct {
	now atomic.Pointer[written]
}

type written struct {
	body []byte
	etag string
}

// Set puts another document in the place of the one that is served.
func (p *Page) Set(d *Document) error {
	body, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("write the document of cells: %w", err)
	}
	if old := p.now.Load(); old != nil && bytes.Equal(old.body, body) {
		return nil
	}
	sum := sha256.Sum256(body)
	p.now.Store(&written{body, `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`})
	return nil
}

// ServeHTTP answers GET and HEAD.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "GET only", http.StatusMethodNotAllowed)
		return
	}
	doc := p.now.Load()
	if doc == nil {
		h.Set("Retry-After", "1")
		http.Error(w, "the cells are not known yet", http.StatusServiceUnavailable)
		return
	}
	h.Set("Cache-Control", "public, max-age=2")
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("ETag", doc.etag)
	if r.Header.Get("If-None-Match") == doc.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", "application/json")
	if r.Method == http.MethodGet {
		_, _ = w.Write(doc.body)
	}
}
