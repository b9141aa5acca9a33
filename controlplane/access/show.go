package access

import (
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func showGrant(g store.Grant) *adminv1.Grant {
	out := &adminv1.Grant{
		Id: g.ID, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: g.Subject, Target: g.String(), Condition: g.Condition,
		Reason: g.Reason, CreatedBy: g.CreatedBy, CreatedMs: g.CreatedAt.UnixMilli(), Terms: terms(g),
	}
	if l := g.Limits; !l.IsZero() {
		out.Limits = &adminv1.GrantLimits{
			Networks: controlplane.List(l.Networks), Between: l.Between(), Days: l.Days(), TimeZone: l.Zone,
			Regions: controlplane.List(l.Regions), WithinClearance: l.Clearance, NotActing: l.NotActing,
		}
	}
	if !g.NotBefore.IsZero() {
		out.NotBeforeMs = g.NotBefore.UnixMilli()
	}
	if g.Deny {
		out.Effect = adminv1.GrantEffect_GRANT_EFFECT_DENY
	}
	if !g.ExpiresAt.IsZero() {
		out.ExpiresMs = g.ExpiresAt.UnixMilli()
	}
	return out
}

// terms are everything that a grant asks for besides its times, in words.
func terms(g store.Grant) []string {
	out := g.Limits.Terms()
	if g.Condition != "" {
		out = append(out, "when "+g.Condition)
	}
	return out
}

// words is a grant as a person would type it.
func words(g store.Grant) string {
	var b strings.Builder
	b.WriteString(g.Subject + " " + g.String())
	if g.Deny {
		b.WriteString(" --deny")
	}
	if g.Condition != "" {
		b.WriteString(" --when " + quote(g.Condition))
	}
	return b.String()
}

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func describeGrant(g store.Grant) map[string]any {
	d := map[string]any{"effect": "allow", "subject": g.Subject, "target": g.String()}
	if g.Deny {
		d["effect"] = "deny"
	}
	if g.Condition != "" {
		d["condition"] = g.Condition
	}
	if !g.Limits.IsZero() {
		d["limits"] = g.Limits.Terms()
	}
	if g.Reason != "" {
		d["reason"] = g.Reason
	}
	if !g.NotBefore.IsZero() {
		d["begins"] = g.NotBefore.UTC().Format(time.RFC3339Nano)
	}
	if !g.ExpiresAt.IsZero() {
		d["expires"] = g.ExpiresAt.UTC().Format(time.RFC3339Nano)
	}
	return d
}
