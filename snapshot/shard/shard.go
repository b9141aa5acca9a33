// Package shard turns a tenant's head into what a cell serves from: the index and the catalogue. It promises that both
// are the bytes that the head names, belong to the head's tenant and agree with each other.
package shard

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/kit/offheap"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
)

// The bounds of a catalogue.
const (
	MaxCatalogue = 64 << 20
	MaxTool      = 1 << 20 // bytes of one raw tool object
	MaxServers   = 10_000
	MaxIssuers   = 64
	// Of one issuer.
	MaxIssuerKeys = 128
	MaxScopeRules = 256
	MaxWithdrawn  = 1024
	MaxHosts      = 1024
)

// Fetch appends the bytes with a digest to dst, which has room for size of them, from wherever it has them.
type Fetch func(dst []byte, digest snapshot.Digest, size uint64) ([]byte, error)

// OpenTenant fetches and checks the shards of a head. Errors wrap the sentinels of seal and index, or are Fetch's.
func OpenTenant(head *snapshotv1.Head, fetch Fetch) (*index.Index, *snapshotv1.Catalogue, error) {
	x, err := OpenIndex(head, fetch)
	if err != nil {
		return nil, nil, fmt.Errorf("open tenant %s %v: %w", head.GetTenant(), snapshot.VersionOf(head), err)
	}
	c, err := openCatalogue(head, fetch)
	if err == nil {
		err = Check(c, x)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open tenant %s %v: %w", head.GetTenant(), snapshot.VersionOf(head), err)
	}
	return x, c, nil
}

// Of describes the bytes of a shard for a head.
func Of(kind snapshotv1.ShardKind, b []byte) *snapshotv1.Shard {
	d := snapshot.DigestOf(b)
	return &snapshotv1.Shard{Kind: kind, Sha256: d[:], Size: uint64(len(b))}
}

// EncodeCatalogue encodes a catalogue; the same catalogue gives the same bytes. It refuses what a cell would refuse.
func EncodeCatalogue(c *snapshotv1.Catalogue) ([]byte, error) {
	if err := check(c); err != nil {
		return nil, fmt.Errorf("encode catalogue: %w", err)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode catalogue: %w", err)
	}
	if len(b) > MaxCatalogue {
		return nil, fmt.Errorf("encode catalogue: %d bytes, at most %d: %w", len(b), MaxCatalogue, seal.ErrSize)
	}
	return b, nil
}

// wanted is what a head says of a shard, within bounds.
func wanted(head *snapshotv1.Head, kind snapshotv1.ShardKind, limit uint64) (d snapshot.Digest, size uint64, err error) {
	d, size, ok := seal.ShardOf(head, kind)
	if !ok {
		return d, 0, fmt.Errorf("%v missing: %w", kind, seal.ErrFormat)
	}
	if size > limit {
		return d, 0, fmt.Errorf("%v of %d bytes, at most %d: %w", kind, size, limit, seal.ErrSize)
	}
	return d, size, nil
}

// get fetches a shard to the end of dst and compares its digest.
func get(dst []byte, kind snapshotv1.ShardKind, d snapshot.Digest, size uint64, fetch Fetch) ([]byte, error) {
	b, err := fetch(dst, d, size)
	if err != nil {
		return nil, fmt.Errorf("fetch %v %v: %w", kind, d, err)
	}
	if uint64(len(b)) != size || snapshot.DigestOf(b) != d {
		return nil, fmt.Errorf("%v %v: %w", kind, d, seal.ErrDigest)
	}
	return b, nil
}

// OpenIndex is OpenTenant for the index alone. The index lies in memory of its own, outside the heap and read-only from
// then on: a policy of a million users costs the garbage collector nothing, and nobody in the process can change it.
func OpenIndex(head *snapshotv1.Head, fetch Fetch) (*index.Index, error) {
	const kind = snapshotv1.ShardKind_SHARD_KIND_INDEX
	d, size, err := wanted(head, kind, index.MaxSize)
	if err != nil {
		return nil, err
	}
	block, err := offheap.New(int(size))
	if err != nil {
		return nil, err
	}
	b, err := get(block.Bytes()[:0], kind, d, size, fetch)
	if err != nil {
		return nil, err
	}
	if &b[0] != &block.Bytes()[0] {
		copy(block.Bytes(), b) // there was no room, or the bytes were somebody's own
	}
	x, err := index.Open(block.Bytes(), block)
	if err != nil {
		return nil, err
	}
	if err := block.Seal(); err != nil {
		return nil, err
	}
	if string(x.Tenant()) != head.GetTenantId() {
		return nil, fmt.Errorf("index of %.64q: %w", x.Tenant(), seal.ErrTenant)
	}
	return x, nil
}

func openCatalogue(head *snapshotv1.Head, fetch Fetch) (*snapshotv1.Catalogue, error) {
	const kind = snapshotv1.ShardKind_SHARD_KIND_CATALOGUE
	d, size, err := wanted(head, kind, MaxCatalogue)
	if err != nil {
		return nil, err
	}
	b, err := get(nil, kind, d, size, fetch)
	if err != nil {
		return nil, err
	}
	c := &snapshotv1.Catalogue{}
	if err := proto.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("catalogue: %w", seal.ErrFormat)
	}
	if err := check(c); err != nil {
		return nil, err
	}
	if c.GetTenantId() != head.GetTenantId() || c.GetTenant() != head.GetTenant() {
		return nil, fmt.Errorf("catalogue of %.64q: %w", c.GetTenantId(), seal.ErrTenant)
	}
	return c, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("catalogue: %s: %w", fmt.Sprintf(format, args...), seal.ErrFormat)
}

// check looks at a catalogue by itself: sorted, each thing once, bounded.
func check(c *snapshotv1.Catalogue) error {
	switch {
	case len(c.GetServers()) > MaxServers:
		return malformed("%d servers", len(c.GetServers()))
	case len(c.GetIssuers()) > MaxIssuers:
		return malformed("%d issuers", len(c.GetIssuers()))
	case len(c.GetHosts()) > MaxHosts:
		return malformed("%d hosts", len(c.GetHosts()))
	}
	last := ""
	for _, s := range c.GetServers() {
		if err := snapshot.CheckName(s.GetName()); err != nil {
			return malformed("server: %v", err)
		}
		if s.GetName() <= last {
			return malformed("server %q out of order", s.GetName())
		}
		last = s.GetName()
		if err := checkTools(s); err != nil {
			return err
		}
		for _, list := range [][]*snapshotv1.CatalogueEntry{s.GetPrompts(), s.GetResources(), s.GetResourceTemplates()} {
			if err := checkEntries(s.GetName(), list); err != nil {
				return err
			}
		}
	}
	last = ""
	for _, h := range c.GetHosts() {
		if h <= last {
			return malformed("host %.64q out of order", h)
		}
		last = h
	}
	issuers := map[string]bool{}
	for _, i := range c.GetIssuers() {
		if i.GetIssuer() == "" || issuers[i.GetIssuer()] {
			return malformed("issuer %.64q empty or twice", i.GetIssuer())
		}
		issuers[i.GetIssuer()] = true
		if err := checkIssuer(i); err != nil {
			return err
		}
	}
	return nil
}

// checkIssuer bounds what a caller's token is held against on each request.
func checkIssuer(i *snapshotv1.Issuer) error {
	if len(i.GetKeys()) > MaxIssuerKeys || len(i.GetScopes()) > MaxScopeRules || len(i.GetAudiences()) > MaxIssuerKeys || len(i.GetWithdrawn()) > MaxWithdrawn {
		return malformed("issuer %.64q: %d keys, %d scopes, %d audiences, %d keys withdrawn", i.GetIssuer(), len(i.GetKeys()), len(i.GetScopes()),
			len(i.GetAudiences()), len(i.GetWithdrawn()))
	}
	for _, r := range i.GetScopes() {
		if r.GetScope() == "" || len(r.GetWider()) > MaxIssuerKeys {
			return malformed("issuer %.64q: scope %.64q empty or with %d wider ones", i.GetIssuer(), r.GetScope(), len(r.GetWider()))
		}
	}
	return nil
}

// checkEntries looks at the prompts, resources or templates of a server.
func checkEntries(server string, list []*snapshotv1.CatalogueEntry) error {
	last := ""
	for _, e := range list {
		if err := snapshot.CheckName(e.GetName()); err != nil {
			return malformed("server %q: %v", server, err)
		}
		if e.GetName() <= last {
			return malformed("server %q: %q out of order", server, e.GetName())
		}
		last = e.GetName()
		if len(e.GetRaw()) > MaxTool {
			return malformed("server %q: %q of %d bytes", server, e.GetName(), len(e.GetRaw()))
		}
	}
	return nil
}

func checkTools(s *snapshotv1.CatalogueServer) error {
	last := ""
	for _, t := range s.GetTools() {
		if err := snapshot.CheckName(t.GetName()); err != nil || snapshot.IsSurface(t.GetName()) {
			return malformed("server %q: tool %.64q", s.GetName(), t.GetName())
		}
		if t.GetName() <= last {
			return malformed("server %q: tool %q out of order", s.GetName(), t.GetName())
		}
		last = t.GetName()
		if len(t.GetRaw()) > MaxTool {
			return malformed("server %q: tool %q of %d bytes", s.GetName(), t.GetName(), len(t.GetRaw()))
		}
	}
	return nil
}

// Check compares a catalogue with an index: every server and tool that may be shown has its place in the index.
func Check(c *snapshotv1.Catalogue, x *index.Index) error {
	for _, s := range c.GetServers() {
		id, ok := x.Server(s.GetName())
		if !ok {
			return malformed("server %q is not in the index", s.GetName())
		}
		for _, t := range s.GetTools() {
			if _, ok := x.Item(id, t.GetName()); !ok {
				return malformed("tool %q of server %q is not in the index", t.GetName(), s.GetName())
			}
		}
	}
	return nil
}
