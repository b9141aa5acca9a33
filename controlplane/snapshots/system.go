package snapshots

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/cellapi"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// late is how old a status or a contact may be before somebody should look.
const late = 15 * time.Second

// ListCells lists the cells, who is homed there and how their nodes are. Only an owner is told of other tenants.
func (s *Service) ListCells(ctx context.Context, _ *adminv1.ListCellsRequest) (*adminv1.ListCellsResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	var tenants []controlplane.Tenant
	var homes []store.CellTenant
	var names []string
	var statuses []store.NodeStatus
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		if tenants, err = tx.Tenants(ctx); err != nil {
			return err
		}
		if homes, err = tx.CellTenants(ctx); err != nil {
			return err
		}
		if names, err = tx.Cells(ctx); err != nil {
			return err
		}
		statuses, err = tx.NodeStatuses(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	byID := map[controlplane.TenantID]string{}
	for _, t := range tenants {
		byID[t.ID] = t.Name
	}
	res := &adminv1.ListCellsResponse{}
	connected := s.cfg.Fleet.Connected()
	for _, name := range names {
		c := &adminv1.Cell{Name: name, Nodes: nodesOf(name, statuses, connected)}
		for _, h := range homes {
			if h.Cell == name && (caller.Has(controlplane.RoleOwner) || byID[h.TenantID] == caller.Home) {
				c.Tenants = append(c.Tenants, byID[h.TenantID])
			}
		}
		slices.Sort(c.Tenants)
		res.Cells = append(res.Cells, c)
	}
	return res, nil
}

func nodesOf(cell string, statuses []store.NodeStatus, connected []cellapi.Node) []*adminv1.CellNode {
	var out []*adminv1.CellNode
	seen := map[string]bool{}
	for _, st := range statuses {
		if st.Cell != cell {
			continue
		}
		shown := &cellv1.NodeStatus{}
		if proto.Unmarshal(st.Status, shown) != nil {
			shown = &cellv1.NodeStatus{Cell: st.Cell, Node: st.Node, Problems: []string{"its status cannot be read"}}
		}
		seen[st.Node] = true
		out = append(out, &adminv1.CellNode{
			Status: shown, SeenMs: st.SeenAt.UnixMilli(), Connected: slices.Contains(connected, cellapi.Node{Cell: cell, Name: st.Node}),
		})
	}
	for _, n := range connected {
		if n.Cell == cell && !seen[n.Name] {
			out = append(out, &adminv1.CellNode{Status: &cellv1.NodeStatus{Cell: cell, Node: n.Name}, Connected: true})
		}
	}
	return out
}

// Whoami says who the caller is.
func (s *Service) Whoami(ctx context.Context, _ *adminv1.WhoamiRequest) (*adminv1.WhoamiResponse, error) {
	c := controlplane.CallerFrom(ctx)
	return &adminv1.WhoamiResponse{Principal: c.Principal, Tenant: c.Home, Roles: c.Roles, ExpiresMs: c.ExpiresAt.UnixMilli()}, nil
}

// CheckHealth looks at everything that an operator would look at. It always answers, also when PostgreSQL does not.
func (s *Service) CheckHealth(ctx context.Context, _ *adminv1.CheckHealthRequest) (*adminv1.CheckHealthResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return &adminv1.CheckHealthResponse{Version: s.cfg.Version, Checks: []*adminv1.HealthCheck{
		s.checkPostgres(ctx), s.checkPublisher(ctx), s.checkKeys(ctx), s.checkCells(ctx), s.checkAudit(ctx),
	}}, nil
}

func check(name, detail string, bad []string, fix string) *adminv1.HealthCheck {
	if len(bad) == 0 {
		return &adminv1.HealthCheck{Name: name, Ok: true, Detail: detail}
	}
	if len(bad) > 5 {
		bad = append(bad[:5], fmt.Sprintf("and %d more", len(bad)-5))
	}
	return &adminv1.HealthCheck{Name: name, Detail: strings.Join(bad, "; "), Fix: fix}
}

// broken is a check that could not be made.
func broken(name string, err error) *adminv1.HealthCheck {
	c := &adminv1.HealthCheck{Name: name, Detail: "it cannot be found out"}
	if p, ok := problem.As(err); ok {
		c.Detail, c.Fix = p.What, p.Fix
	}
	return c
}

func (s *Service) checkPostgres(ctx context.Context) *adminv1.HealthCheck {
	began := time.Now()
	if err := s.cfg.Store.Ping(ctx); err != nil {
		return broken("postgres", err)
	}
	return check("postgres", fmt.Sprintf("answers in %.1f ms", float64(time.Since(began).Microseconds())/1000), nil, "")
}

func (s *Service) checkPublisher(ctx context.Context) *adminv1.HealthCheck {
	st := s.cfg.Publisher.Status()
	var bad []string
	if !st.Loaded {
		bad = append(bad, "the published generations have not been read yet")
	} else if age := s.cfg.Now().Sub(st.Contact); age > late {
		bad = append(bad, fmt.Sprintf("PostgreSQL was last heard from %s ago, heartbeats are paused", age.Round(time.Second)))
	}
	if st.Skew.Abs() > 30*time.Second {
		bad = append(bad, fmt.Sprintf("this clock is %s from PostgreSQL's, heartbeats are paused", st.Skew.Round(time.Second)))
	}
	caller := controlplane.CallerFrom(ctx)
	for _, f := range st.Failures {
		if !caller.Has(controlplane.RoleOwner) && f.Tenant != caller.Home {
			continue
		}
		bad = append(bad, fmt.Sprintf("tenant %s cannot be published since %s: %s", f.Tenant, f.Since.UTC().Format(time.RFC3339), f.Message))
	}
	var open []store.OutboxRow
	err := s.cfg.Store.Platform(ctx, func(tx *store.Tx) (err error) {
		open, err = tx.OpenOutbox(ctx, 1)
		return err
	})
	if err != nil {
		return broken("publisher", err)
	}
	if len(open) > 0 && s.cfg.Now().Sub(open[0].At) > late {
		bad = append(bad, fmt.Sprintf("the oldest unpublished change is %s old", s.cfg.Now().Sub(open[0].At).Round(time.Second)))
	}
	return check("publisher", "everything committed is published", bad, "the last good generation stays in force; look at the control plane's log")
}

func (s *Service) checkCells(ctx context.Context) *adminv1.HealthCheck {
	cells, err := s.ListCells(ctx, &adminv1.ListCellsRequest{})
	if err != nil {
		return broken("cells", err)
	}
	var bad []string
	nodes, up := 0, 0
	for _, c := range cells.GetCells() {
		for _, n := range c.GetNodes() {
			name := c.GetName() + "/" + n.GetStatus().GetNode()
			nodes++
			if n.GetConnected() {
				up++
			} else {
				bad = append(bad, fmt.Sprintf("node %s is not connected, last seen %s", name, time.UnixMilli(n.GetSeenMs()).UTC().Format(time.RFC3339)))
			}
			for _, p := range n.GetStatus().GetProblems() {
				bad = append(bad, name+": "+p)
			}
		}
	}
	if nodes == 0 {
		bad = append(bad, "no node has connected yet")
	}
	return check("cells", fmt.Sprintf("%d of %d nodes are connected", up, nodes), bad, "see `mcpvault cell status`")
}

func (s *Service) checkAudit(ctx context.Context) *adminv1.HealthCheck {
	if s.cfg.Logs == nil {
		return check("audit", "not collected here", nil, "")
	}
	logs, err := s.cfg.Logs.ListLogs(ctx, &adminv1.ListLogsRequest{})
	if err != nil {
		return broken("audit", err)
	}
	var bad []string
	var size uint64
	for _, l := range logs.GetLogs() {
		size += l.GetSize()
		if l.GetAlarm() != "" {
			bad = append(bad, fmt.Sprintf("log %s: %s", l.GetLogId(), l.GetAlarm()))
		}
	}
	return check("audit", fmt.Sprintf("%d records of %d logs, none contradicts itself", size, len(logs.GetLogs())), bad, "run `mcpvault audit verify`")
}
