package export

import (
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/mcpvault/mcpvault/snapshot"
)

// entities are who belongs to what, and what servers offer.
func (e *exporter) entities() types.EntityMap {
	out := types.EntityMap{}
	for _, u := range e.p.Principals {
		uid := e.principals[u.Name]
		attrs := types.RecordMap{
			"name": types.String(u.Name), "kind": types.String(u.Kind.String()), "clearance": types.Long(u.Clearance),
		}
		if u.Region != "" {
			attrs["region"] = types.String(u.Region)
		}
		parents := slices.Concat(u.Nodes, e.own[u.Name], e.everyone)
		out[uid] = types.Entity{UID: uid, Parents: e.parents(parents), Attributes: types.NewRecord(attrs)}
	}
	for _, n := range e.p.Nodes {
		if n.Ref == snapshot.Everyone || strings.HasPrefix(string(n.Ref), "user:") {
			continue
		}
		uid := e.entity(n.Ref)
		out[uid] = types.Entity{UID: uid, Parents: e.parents(n.Parents)}
	}
	for _, s := range e.p.Servers {
		server := types.NewEntityUID("Server", types.String(s.Name))
		out[server] = types.Entity{UID: server}
		for _, item := range append([]string{snapshot.ItemOther}, s.Items...) {
			uid := ItemUID(s.Name, item)
			out[uid] = itemEntity(uid, server, s.Name, item, s.Facts[item])
		}
	}
	return out
}

// parents leaves out what stands for everybody: that is no entity.
func (e *exporter) parents(refs []snapshot.Ref) types.EntityUIDSet {
	var list []types.EntityUID
	for _, r := range refs {
		if r == snapshot.Everyone {
			// Belonging to everyone is belonging to what everyone belongs to.
			for _, up := range e.everyone {
				list = append(list, e.entity(up))
			}
			continue
		}
		list = append(list, e.entity(r))
	}
	return types.NewEntityUIDSet(list...)
}

func itemEntity(uid, server types.EntityUID, serverName, item string, facts snapshot.Facts) types.Entity {
	kind, name := snapshot.KindOf(item)
	attrs := types.RecordMap{"name": types.String(name), "server": types.String(serverName), "kind": types.String(kind.String())}
	labels := types.RecordMap{}
	parents := []types.EntityUID{server}
	for attr, f := range facts {
		if key, ok := strings.CutPrefix(attr, "labels."); ok {
			labels[types.String(key)] = value(f)
			continue
		}
		attrs[types.String(attr)] = value(f)
		if attr == "endpoints" {
			for _, name := range f.Set {
				parents = append(parents, types.NewEntityUID("Endpoint", types.String(name)))
			}
		}
	}
	attrs["labels"] = types.NewRecord(labels)
	return types.Entity{UID: uid, Parents: types.NewEntityUIDSet(parents...), Attributes: types.NewRecord(attrs)}
}

func value(f snapshot.Fact) types.Value {
	switch f.Type {
	case snapshot.TypeBool:
		return types.Boolean(f.Bool)
	case snapshot.TypeNumber:
		return types.Long(f.Int)
	case snapshot.TypeSet:
		list := make([]types.Value, 0, len(f.Set))
		for _, m := range f.Set {
			list = append(list, types.String(m))
		}
		return types.NewSet(list...)
	default:
		return types.String(f.Str)
	}
}
