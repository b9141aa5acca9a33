package registry

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// fill shows a server, and one of its versions unless number is 0, as they are in this transaction.
func fill(ctx context.Context, tx *store.Tx, name string, number uint32, server **adminv1.Server, version **adminv1.ServerVersion) error {
	srv, err := tx.Server(ctx, name)
	if err != nil {
		return err
	}
	labels, err := tx.ServerLabels(ctx, srv.ID)
	if err != nil {
		return err
	}
	*server = showServer(srv)
	(*server).Labels = labelWords(labels, "")
	if number == 0 {
		return nil
	}
	published, err := publishedSurface(ctx, tx, srv)
	if err != nil {
		return err
	}
	v, err := tx.Version(ctx, srv, number)
	if err != nil {
		return err
	}
	if *version, err = showVersion(v, published); err != nil {
		return err
	}
	for _, t := range (*version).GetTools() {
		t.Labels = labelWords(labels, t.GetName())
	}
	return nil
}

// publishedSurface is nil while nothing is published.
func publishedSurface(ctx context.Context, tx *store.Tx, srv store.Server) (*Surface, error) {
	if srv.PublishedVersion == 0 {
		return nil, nil
	}
	v, err := tx.Version(ctx, srv, srv.PublishedVersion)
	if err != nil {
		return nil, err
	}
	return DecodeSurface(v.Surface)
}

func showServer(s store.Server) *adminv1.Server {
	return &adminv1.Server{
		Id: s.ID, Name: s.Name, Url: s.URL, Description: s.Description, PublishedVersion: s.PublishedVersion,
		LatestVersion: s.LatestVersion, LastError: s.LastError, ScannedMs: millis(s.ScannedAt),
	}
}

// showVersion shows a version and how its tools differ from what is published. Effects of a version that nobody approved
// are what the server's annotations propose.
func showVersion(v store.ServerVersion, published *Surface) (*adminv1.ServerVersion, error) {
	surface, err := DecodeSurface(v.Surface)
	if err != nil {
		return nil, err
	}
	out := &adminv1.ServerVersion{
		Number: v.Number, Digest: hex.EncodeToString(v.Digest), State: states[v.State], ProtocolVersions: v.ProtocolVersions,
		CreatedMs: millis(v.CreatedAt), ApprovedBy: v.ApprovedBy, ApprovedMs: millis(v.ApprovedAt),
	}
	var info struct{ Name, Version string }
	if json.Unmarshal(surface.ServerInfo, &info) == nil {
		out.ServerName, out.ServerVersion = info.Name, info.Version
	}
	diff := map[string]string{}
	if published != nil {
		diff = Differences(published, surface)
	}
	for _, t := range surface.Tools {
		class := v.Effects[t.Name]
		if v.State == store.VersionPending {
			class = hint(t.Raw)
		}
		out.Tools = append(out.Tools, &adminv1.Tool{
			Name: t.Name, Description: description(t.Raw), Effect: classes[class], Raw: t.Raw, Change: diff[t.Name],
		})
		delete(diff, t.Name)
	}
	var gone []string
	for name := range diff {
		gone = append(gone, name)
	}
	slices.Sort(gone)
	for _, name := range gone {
		out.Tools = append(out.Tools, &adminv1.Tool{Name: name, Change: diff[name]})
	}
	out.Prompts = showEntries(surface.Prompts, published, func(s *Surface) *[]Entry { return &s.Prompts })
	out.Resources = showEntries(surface.Resources, published, func(s *Surface) *[]Entry { return &s.Resources })
	out.ResourceTemplates = showEntries(surface.Templates, published, func(s *Surface) *[]Entry { return &s.Templates })
	return out, nil
}

var states = map[store.VersionState]adminv1.VersionState{
	store.VersionPending:    adminv1.VersionState_VERSION_STATE_PENDING,
	store.VersionPublished:  adminv1.VersionState_VERSION_STATE_PUBLISHED,
	store.VersionSuperseded: adminv1.VersionState_VERSION_STATE_SUPERSEDED,
}

var classes = map[string]snapshotv1.Effect{
	Read: snapshotv1.Effect_EFFECT_READ, Write: snapshotv1.Effect_EFFECT_WRITE, Destructive: snapshotv1.Effect_EFFECT_DESTRUCTIVE,
}

// class is the stored word of an effect; what is unset is destructive.
func class(e snapshotv1.Effect) string {
	for word, effect := range classes {
		if effect == e {
			return word
		}
	}
	return Destructive
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func sentence(err error) string {
	if err == nil {
		return ""
	}
	if p, ok := problem.As(err); ok {
		q := *p
		q.Cause = nil
		return q.Error()
	}
	return err.Error()
}

func checkURL(raw string) error {
	if isStdio(raw) {
		return checkStdio(raw)
	}
	u, err := url.Parse(strings.TrimPrefix(raw, legacySSE))
	fix := "give a URL like https://mcp.example.com/mcp"
	switch {
	case err != nil || u.Host == "":
		return problem.New(problem.Invalid, "the address is not a URL", fix)
	case u.Scheme != "http" && u.Scheme != "https":
		return problem.Newf(problem.Invalid, fix, "the address has scheme %q; http and https are spoken, and sse+http and sse+https for the transport of 2024-11-05", u.Scheme)
	case u.User != nil:
		return problem.New(problem.Invalid, "the address contains a password or user name", "leave it out: credentials do not belong in an address")
	}
	if address, id := svid.SplitAddress(raw); address != raw {
		if whole, err := svid.JoinAddress(address, id); err != nil || whole != raw {
			return problem.New(problem.Invalid, "the address contains a fragment (#) that is no SPIFFE ID of a server with https",
				"leave it out, or write who must answer: https://mcp.example.com/mcp#spiffe://example.com/mcp")
		}
	}
	return nil
}
