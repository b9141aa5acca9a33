package shard_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
	"github.com/mcpvault/mcpvault/snapshot"
	"github.com/mcpvault/mcpvault/snapshot/builder"
	"github.com/mcpvault/mcpvault/snapshot/index"
	"github.com/mcpvault/mcpvault/snapshot/seal"
	"github.com/mcpvault/mcpvault/snapshot/shard"
	"github.com/mcpvault/mcpvault/snapshot/snapshottest"
)

func policy() *snapshot.Policy {
	return &snapshot.Policy{
		Tenant: "0198c0de-0000-7000-8000-000000000001", Principals: []snapshot.Principal{{Name: "alice"}},
		Servers: []snapshot.Server{{Name: "demo", Items: []string{"echo", "slow"}}, {Name: "payments", Items: []string{"refund"}}},
	}
}

func catalogue() *snapshotv1.Catalogue {
	return &snapshotv1.Catalogue{
		Servers: []*snapshotv1.CatalogueServer{
			{Name: "demo", Tools: []*snapshotv1.CatalogueTool{{Name: "echo", Raw: []byte(`{"name":"echo"}`)}, {Name: "slow"}}},
			{Name: "payments", Tools: []*snapshotv1.CatalogueTool{{Name: "refund"}}},
		},
		Hosts:   []string{"acme.localhost", "mcp.acme.example"},
		Issuers: []*snapshotv1.Issuer{{Issuer: "urn:mcpvault:issuer:acme"}},
	}
}

// publish seals a head over a policy and a catalogue; spoil may change the head before it is opened.
func publish(t *testing.T, a *snapshottest.Authority, spoil func(*snapshotv1.Head)) *snapshotv1.Head {
	t.Helper()
	h, err := a.Trust.OpenHead(a.Publish(t, policy(), catalogue(), &snapshotv1.Head{}))
	if err != nil {
		t.Fatal(err)
	}
	if spoil != nil {
		spoil(h)
	}
	return h
}

func TestOpenTenant(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	x, c, err := shard.OpenTenant(publish(t, a, nil), a.Fetch)
	if err != nil {
		t.Fatal(err)
	}
	if x.Servers() != 2 || len(c.GetServers()) != 2 || c.GetTenantId() != string(x.Tenant()) {
		t.Errorf("%d servers, catalogue %v", x.Servers(), c)
	}
}

func TestOpenTenantRefusesWhatTheHeadDoesNotName(t *testing.T) {
	t.Parallel()
	a := snapshottest.NewAuthority(t)
	honest := publish(t, a, nil)
	for i := range honest.GetShards() {
		victim, _ := snapshot.DigestFrom(honest.GetShards()[i].GetSha256())
		for name, change := range map[string]func([]byte) []byte{
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			"cut":     func(b []byte) []byte { return b[:len(b)-1] },
			"longer":  func(b []byte) []byte { return append(b, 0) },
			"nothing": func([]byte) []byte { return nil },
		} {
			_, _, err := shard.OpenTenant(honest, func(dst []byte, d snapshot.Digest, n uint64) ([]byte, error) {
				b, err := a.Fetch(dst, d, n)
				if d == victim {
					b = change(slices.Clone(b))
				}
				return b, err
			})
			if !errors.Is(err, seal.ErrDigest) {
				t.Errorf("shard %d %s: %v", i, name, err)
			}
		}
		lost := errors.New("lost")
		if _, _, err := shard.OpenTenant(honest, func([]byte, snapshot.Digest, uint64) ([]byte, error) { return nil, lost }); !errors.Is(err, lost) {
			t.Errorf("fetch failed: %v", err)
		}
	}
	for name, tc := range map[string]struct {
		spoil func(*snapshotv1.Head)
		want  error
	}{
		"other tenant id": {func(h *snapshotv1.Head) { h.TenantId = "globex" }, seal.ErrTenant},
		"other tenant":    {func(h *snapshotv1.Head) { h.Tenant = "globex" }, seal.ErrTenant},
		"too large":       {func(h *snapshotv1.Head) { h.Shards[1].Size = shard.MaxCatalogue + 1 }, seal.ErrSize},
		"other size":      {func(h *snapshotv1.Head) { h.Shards[1].Size++ }, seal.ErrDigest},
		"swapped":         {func(h *snapshotv1.Head) { h.Shards[0].Kind, h.Shards[1].Kind = 2, 1 }, index.ErrFormat},
		"no catalogue":    {func(h *snapshotv1.Head) { h.Shards = h.Shards[:1] }, seal.ErrFormat},
		"no index":        {func(h *snapshotv1.Head) { h.Shards = h.Shards[1:] }, seal.ErrFormat},
	} {
		if _, _, err := shard.OpenTenant(publish(t, a, tc.spoil), a.Fetch); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCatalogueIsSortedAndEachThingOnce(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*snapshotv1.Catalogue){
		"server order": func(c *snapshotv1.Catalogue) { slices.Reverse(c.Servers) },
		"server twice": func(c *snapshotv1.Catalogue) { c.Servers[1].Name = "demo" },
		"server name":  func(c *snapshotv1.Catalogue) { c.Servers[0].Name = "" },
		"tool order":   func(c *snapshotv1.Catalogue) { slices.Reverse(c.Servers[0].Tools) },
		"tool twice":   func(c *snapshotv1.Catalogue) { c.Servers[0].Tools[1].Name = "echo" },
		"surface":      func(c *snapshotv1.Catalogue) { c.Servers[0].Tools[0].Name = snapshot.ItemOther },
		"tool too large": func(c *snapshotv1.Catalogue) {
			c.Servers[0].Tools[0].Raw = make([]byte, shard.MaxTool+1)
		},
		"prompt order": func(c *snapshotv1.Catalogue) {
			c.Servers[0].Prompts = []*snapshotv1.CatalogueEntry{{Name: "b"}, {Name: "a"}}
		},
		"resource without a name": func(c *snapshotv1.Catalogue) {
			c.Servers[0].Resources = []*snapshotv1.CatalogueEntry{{Raw: []byte(`{}`)}}
		},
		"template too large": func(c *snapshotv1.Catalogue) {
			c.Servers[0].ResourceTemplates = []*snapshotv1.CatalogueEntry{{Name: "a", Raw: make([]byte, shard.MaxTool+1)}}
		},
		"host order":    func(c *snapshotv1.Catalogue) { slices.Reverse(c.Hosts) },
		"issuer twice":  func(c *snapshotv1.Catalogue) { c.Issuers = append(c.Issuers, c.Issuers[0]) },
		"issuer's keys": func(c *snapshotv1.Catalogue) { c.Issuers[0].Keys = make([]*snapshotv1.IssuerKey, 129) },
		"empty scope":   func(c *snapshotv1.Catalogue) { c.Issuers[0].Scopes = []*snapshotv1.ScopeRule{{}} },
		"issuer":        func(c *snapshotv1.Catalogue) { c.Issuers[0].Issuer = "" },
	} {
		c := catalogue()
		spoil(c)
		if _, err := shard.EncodeCatalogue(c); !errors.Is(err, seal.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCatalogueAndIndexAgree(t *testing.T) {
	t.Parallel()
	b, err := builder.Build(policy())
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := shard.Check(catalogue(), x); err != nil {
		t.Error(err)
	}
	c := catalogue()
	c.Servers[1].Tools[0].Name = "transfer"
	if err := shard.Check(c, x); err == nil || !strings.Contains(err.Error(), `"transfer"`) {
		t.Errorf("a tool without a place in the index: %v", err)
	}
	c = catalogue()
	c.Servers[1].Name = "shadow"
	if err := shard.Check(c, x); err == nil || !strings.Contains(err.Error(), `"shadow"`) {
		t.Errorf("a server without a place in the index: %v", err)
	}
}

func TestCatalogueIsEncodedTheSame(t *testing.T) {
	t.Parallel()
	one, err := shard.EncodeCatalogue(catalogue())
	if err != nil {
		t.Fatal(err)
	}
	again := &snapshotv1.Catalogue{}
	if err := proto.Unmarshal(one, again); err != nil {
		t.Fatal(err)
	}
	two, err := shard.EncodeCatalogue(again)
	if err != nil || string(one) != string(two) {
		t.Errorf("%v", err)
	}
}

func FuzzCatalogue(f *testing.F) {
	p := policy()
	b, err := builder.Build(p)
	if err != nil {
		f.Fatal(err)
	}
	c := catalogue()
	c.TenantId, c.Tenant = string(p.Tenant), "acme"
	cat, err := shard.EncodeCatalogue(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(cat)
	f.Fuzz(func(t *testing.T, cat []byte) {
		h := &snapshotv1.Head{TenantId: string(p.Tenant), Tenant: "acme", Shards: []*snapshotv1.Shard{
			shard.Of(snapshotv1.ShardKind_SHARD_KIND_INDEX, b), shard.Of(snapshotv1.ShardKind_SHARD_KIND_CATALOGUE, cat),
		}}
		_, got, err := shard.OpenTenant(h, func(dst []byte, d snapshot.Digest, _ uint64) ([]byte, error) {
			if d == snapshot.DigestOf(b) {
				return b, nil
			}
			return cat, nil
		})
		if err == nil && got.GetTenantId() != string(p.Tenant) {
			t.Fatal("another tenant's catalogue")
		}
	})
}
