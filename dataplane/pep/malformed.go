package pep

import (
	"net"
	"net/netip"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// Malformed records a request that the listener refused before it was one: its head could not be read in one way only.
// The status and the word for why are the listener's.
func (p *PEP) Malformed(from net.Addr, status int, reason string) {
	rec := p.turnedAway(from, codeRefused, reason)
	rec.HttpStatus = int32(status)
	p.keep(rec)
}

// turnedAway is the record of a caller who did not get as far as a request.
func (p *PEP) turnedAway(from net.Addr, code, reason string) *auditv1.Record {
	id := p.audit.NewID()
	return &auditv1.Record{
		Id: id, RequestId: id, Kind: auditv1.RecordKind_RECORD_KIND_CALL, TimeMs: p.cfg.Now().UnixMilli(), Cell: p.cfg.Cell, Node: p.cfg.Node,
		Region: p.cfg.Region, Client: &auditv1.Client{Address: host(from)}, Decision: auditv1.Decision_DECISION_DENY, Reason: reason,
		Code: code, Outcome: "refused",
	}
}

// keep counts and appends such a record. When it is lost there is nobody to tell but the log.
func (p *PEP) keep(rec *auditv1.Record) {
	p.metrics.observe(rec, 0)
	if err := p.audit.Append(rec); err != nil {
		p.log.Error("audit record lost", "error", err, "request_id", rec.GetId())
	}
}

// host is the address of a connection without its port.
func host(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return bounded(a.String(), 64)
	}
	return ap.Addr().Unmap().WithZone("").String()
}
