package access

import (
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane/store"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func showGrant(g store.Grant) *adminv1.Grant {
	out := &adminv1.Grant{
		Id: g.ID, Effect: adminv1.GrantEffect_GRANT_EFFECT_ALLOW, Subject: g.Subject, Target: target(g), Condition: g.Condition,
		Reason: g.Reason, CreatedBy: g.CreatedBy, CreatedMs: g.CreatedAt.UnixMilli(),
	}
	if g.Deny {
		out.Effect = adminv1.GrantEffect_GRANT_EFFECT_DENY
	}
	if !g.ExpiresAt.IsZero() {
		out.ExpiresMs = g.ExpiresAt.UnixMilli()
	}
	return out
}

func target(g store.Grant) string {
	if g.Tool == "" {
		return "server:" + g.Server
	}
	return "server:" + g.Server + "/" + g.Tool
}

// words is a grant as a person would type it.
func words(g store.Grant) string {
	var b strings.Builder
	b.WriteString(g.Subject + " " + target(g))
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
	d := map[string]any{"effect": "allow", "subject": g.Subject, "target": target(g)}
	if g.Deny {
		d["effect"] = "deny"
	}
	if g.Condition != "" {
		d["condition"] = g.Condition
	}
	if g.Reason != "" {
		d["reason"] = g.Reason
	}
	if !g.ExpiresAt.IsZero() {
		d["expires"] = g.ExpiresAt.UTC().Format(time.RFC3339Nano)
	}
	return d
}
