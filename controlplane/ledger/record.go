package ledger

import (
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// maxText bounds what is taken out of a record to search by; the leaf keeps everything.
const maxText = 512

// undecodable is the reason of a leaf that is no record. A leaf is stored whatever it is: a node that writes rubbish must
// not stop its own log.
const undecodable = "undecodable"

// row takes out of a leaf what is searched for.
func row(index int64, leaf []byte) store.AuditRecord {
	r := store.AuditRecord{Index: index, Leaf: leaf, Tenant: store.NoTenant, At: time.Unix(0, 0)}
	var rec auditv1.Record
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(leaf, &rec); err != nil {
		r.Reason = undecodable
		return r
	}
	if id, err := uuid.Parse(rec.GetTenantId()); err == nil && len(rec.GetTenantId()) == 36 {
		r.Tenant = controlplane.TenantID(id.String())
	}
	r.ID, r.IntentID, r.Reason = text(rec.GetId()), text(rec.GetIntentId()), text(rec.GetReason())
	r.Principal, r.Server, r.Target = text(person(rec.GetPrincipal())), text(rec.GetServer()), text(rec.GetTarget())
	r.Kind, r.Decision = int32(rec.GetKind()), int32(rec.GetDecision())
	// PostgreSQL has no time for every number.
	if ms := rec.GetTimeMs(); ms > 0 && ms < time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli() {
		r.At = time.UnixMilli(ms)
	}
	return r
}

// person is the name that people search by.
func person(p *auditv1.Person) string {
	for _, s := range []string{p.GetName(), p.GetSubject(), p.GetId()} {
		if s != "" {
			return s
		}
	}
	return ""
}

// text makes a string that PostgreSQL takes: bounded, without NUL.
func text(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
		for !utf8.ValidString(s) && s != "" {
			s = s[:len(s)-1]
		}
	}
	return strings.ReplaceAll(s, "\x00", "\uFFFD")
}
