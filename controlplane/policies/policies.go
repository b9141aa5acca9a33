// Package policies keeps what people write as Cedar, beside the grants that are rows. It answers the admin API's
// PolicyService.
//
// A text becomes law only when all of it is understood: each policy types against the published schema and the tools it
// reaches, and every name in it exists. What exists no more later is the compiler's business, which fails closed.
package policies

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/compile"
	"github.com/mcpvault/mcpvault/controlplane/policy"
	"github.com/mcpvault/mcpvault/controlplane/policy/export"
	"github.com/mcpvault/mcpvault/controlplane/policy/schema"
	"github.com/mcpvault/mcpvault/controlplane/publish"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// Config is what the service stands on.
type Config struct {
	Store *store.Store
}

// Service answers the calls. It is safe for concurrent use.
type Service struct{ store *store.Store }

// New makes the service.
func New(cfg Config) *Service { return &Service{store: cfg.Store} }

// PutPolicy checks a text against the tenant as it is and writes it. The same words again change nothing.
func (s *Service) PutPolicy(ctx context.Context, req *adminv1.PutPolicyRequest) (*adminv1.PutPolicyResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	doc, err := policy.Parse(req.GetName(), req.GetText())
	if err != nil {
		return nil, err
	}
	res := &adminv1.PutPolicyResponse{}
	res.Revision, err = s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		old, err := tx.Policy(ctx, req.GetName())
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if want := req.GetExpectVersion(); want != 0 && want != old.Version {
			return problem.Newf(problem.Conflict, fmt.Sprintf("read it with `mcpvault policy get %s`, and write it again", req.GetName()),
				"policy %s is version %d by now, not %d", req.GetName(), old.Version, want)
		}
		if old.Text == req.GetText() && old.Description == req.GetDescription() {
			res.Policy = show(old, doc)
			return store.ErrNoChange
		}
		if err := check(ctx, tx, doc); err != nil {
			return err
		}
		now, err := tx.PutPolicy(ctx, store.Policy{Name: req.GetName(), Text: req.GetText(), Description: req.GetDescription()})
		if err != nil {
			return err
		}
		res.Policy = show(now, doc)
		return tx.Change(ctx, "policy.put", "policy:"+now.Name, detail(now, doc))
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

// check refuses a text of which anything is not understood. It says the first thing that is wrong, and how many there are.
func check(ctx context.Context, tx *store.Tx, doc *policy.Document) error {
	refusals, err := refusals(ctx, tx, doc)
	if err != nil || len(refusals) == 0 {
		return err
	}
	if len(refusals) == 1 {
		return refusals[0]
	}
	first := *refusals[0]
	first.What += fmt.Sprintf(" (and %d more)", len(refusals)-1)
	return &first
}

func refusals(ctx context.Context, tx *store.Tx, doc *policy.Document) ([]*policy.Refusal, error) {
	w, err := world(ctx, tx)
	if err != nil {
		return nil, err
	}
	_, list := doc.Lower(w)
	return list, nil
}

// world is what there is; a server that has no published version yet counts with the newest one that was seen.
func world(ctx context.Context, tx *store.Tx) (*policy.World, error) {
	in, err := publish.ReadInput(ctx, tx)
	if err != nil {
		return nil, err
	}
	servers, err := tx.Servers(ctx)
	if err != nil {
		return nil, err
	}
	for _, srv := range servers {
		if srv.PublishedVersion != 0 {
			continue
		}
		waiting := compile.Server{ID: srv.ID, Name: srv.Name}
		if srv.LatestVersion != 0 {
			v, err := tx.Version(ctx, srv, srv.LatestVersion)
			if err != nil {
				return nil, err
			}
			waiting.Version, waiting.Surface = v.Number, v.Surface
		}
		in.Servers = append(in.Servers, waiting)
	}
	return compile.World(in)
}

// GetPolicy finds one text.
func (s *Service) GetPolicy(ctx context.Context, req *adminv1.GetPolicyRequest) (*adminv1.GetPolicyResponse, error) {
	res := &adminv1.GetPolicyResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		p, err := tx.Policy(ctx, req.GetName())
		if err != nil {
			return s.didYouMean(ctx, tx, req.GetName(), err)
		}
		res.Policy = parsed(p)
		return nil
	})
	return res, err
}

// ListPolicies lists all texts, by name.
func (s *Service) ListPolicies(ctx context.Context, _ *adminv1.ListPoliciesRequest) (*adminv1.ListPoliciesResponse, error) {
	res := &adminv1.ListPoliciesResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		list, err := tx.Policies(ctx)
		res.Policies = nil
		for _, p := range list {
			res.Policies = append(res.Policies, parsed(p))
		}
		return err
	})
	return res, err
}

// DeletePolicy takes a text away.
func (s *Service) DeletePolicy(ctx context.Context, req *adminv1.DeletePolicyRequest) (*adminv1.DeletePolicyResponse, error) {
	caller := controlplane.CallerFrom(ctx)
	rev, err := s.store.Write(ctx, caller.TenantID, caller.Actor(), func(tx *store.Tx) error {
		p, err := tx.Policy(ctx, req.GetName())
		if err != nil {
			return s.didYouMean(ctx, tx, req.GetName(), err)
		}
		if err := tx.DeletePolicy(ctx, p.Name); err != nil {
			return err
		}
		return tx.Change(ctx, "policy.delete", "policy:"+p.Name, detail(p, nil))
	})
	if err != nil {
		return nil, err
	}
	return &adminv1.DeletePolicyResponse{Revision: rev}, nil
}

// ValidatePolicy says everything that is wrong with a text.
func (s *Service) ValidatePolicy(ctx context.Context, req *adminv1.ValidatePolicyRequest) (*adminv1.ValidatePolicyResponse, error) {
	name := req.GetName()
	if name == "" {
		name = "unnamed"
	}
	res := &adminv1.ValidatePolicyResponse{}
	doc, err := policy.Parse(name, req.GetText())
	var refusal *policy.Refusal
	if errors.As(err, &refusal) {
		res.Issues = append(res.Issues, issue(refusal))
		return res, nil
	}
	if err != nil {
		return nil, err
	}
	res.Rules = rules(doc)
	err = s.read(ctx, func(tx *store.Tx) error {
		list, err := refusals(ctx, tx, doc)
		res.Issues = nil
		for _, r := range list {
			res.Issues = append(res.Issues, issue(r))
		}
		return err
	})
	return res, err
}

// FormatPolicy writes a text in Cedar's one form.
func (s *Service) FormatPolicy(_ context.Context, req *adminv1.FormatPolicyRequest) (*adminv1.FormatPolicyResponse, error) {
	text, err := policy.Format(req.GetText())
	return &adminv1.FormatPolicyResponse{Text: text}, err
}

// ExportPolicy writes the whole policy of the tenant as Cedar.
func (s *Service) ExportPolicy(ctx context.Context, _ *adminv1.ExportPolicyRequest) (*adminv1.ExportPolicyResponse, error) {
	res := &adminv1.ExportPolicyResponse{}
	err := s.read(ctx, func(tx *store.Tx) error {
		in, err := publish.ReadInput(ctx, tx)
		if err != nil {
			return err
		}
		form, _, err := compile.Form(in)
		if err != nil {
			return err
		}
		text, entities, err := export.Cedar(form)
		res.Cedar, res.Entities, res.Revision = text, string(entities), in.Tenant.Revision
		return err
	})
	return res, err
}

// GetSchema returns the published schema.
func (s *Service) GetSchema(context.Context, *adminv1.GetSchemaRequest) (*adminv1.GetSchemaResponse, error) {
	return &adminv1.GetSchemaResponse{Version: schema.Version, Text: schema.Text()}, nil
}

func (s *Service) read(ctx context.Context, fn func(*store.Tx) error) error {
	return s.store.Read(ctx, controlplane.CallerFrom(ctx).TenantID, fn)
}

func (s *Service) didYouMean(ctx context.Context, tx *store.Tx, name string, err error) error {
	if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	list, lerr := tx.Policies(ctx)
	if lerr != nil {
		return lerr
	}
	names := make([]string, 0, len(list))
	for _, p := range list {
		names = append(names, p.Name)
	}
	fix := "see `mcpvault policy list`"
	if near := policy.Nearest(name, names); near != "" {
		fix = "did you mean " + near + "?"
	}
	return problem.Newf(problem.NotFound, fix, "policy %s does not exist", name).Because(err)
}

// detail is what the ledger keeps: enough to prove which text it was.
func detail(p store.Policy, doc *policy.Document) map[string]any {
	sum := sha256.Sum256([]byte(p.Text))
	d := map[string]any{"version": p.Version, "sha256": hex.EncodeToString(sum[:]), "bytes": len(p.Text)}
	if doc != nil {
		d["rules"] = rules(doc)
	}
	return d
}

func parsed(p store.Policy) *adminv1.Policy {
	doc, err := policy.Parse(p.Name, p.Text)
	if err != nil {
		doc = &policy.Document{} // the text is shown all the same; the compiler's report says what is wrong
	}
	return show(p, doc)
}

func show(p store.Policy, doc *policy.Document) *adminv1.Policy {
	return &adminv1.Policy{
		Name: p.Name, Text: p.Text, Description: p.Description, Version: p.Version, UpdatedBy: p.UpdatedBy,
		CreatedMs: p.CreatedAt.UnixMilli(), UpdatedMs: p.UpdatedAt.UnixMilli(), Rules: rules(doc),
	}
}

func rules(doc *policy.Document) []string {
	var out []string
	for _, p := range doc.Policies {
		out = append(out, policy.GrantID(doc.Name, p.ID))
	}
	return out
}

func issue(r *policy.Refusal) *adminv1.PolicyIssue {
	return &adminv1.PolicyIssue{Line: uint32(r.Line), Column: uint32(r.Column), What: r.What, Fix: r.Fix}
}
