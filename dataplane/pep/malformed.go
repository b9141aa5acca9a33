package pep

import (
	"net"
	"net/netip"
	"time"

	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// Malformed records a request that the listener refused before it was one: its head could not be read in one way only.
// The status and the word for why are the listener's.
func (p *PEP) Malformed(from net.Addr, status int, reason string) {
	now := p.cfg.Now()
	id := p.audit.NewID()
	rec := &auditv1.Record{
		Id: id, RequestId: id, Kind: auditv1.RecordKind_RECORD_KIND_CALL, TimeMs: now.UnixMilli(), Cell: p.cfg.Cell, Node: p.cfg.Node,
		Region: p.cfg.Region, Client: &auditv1.Client{Address: host(from)}, HttpStatus: int32(status),
		Decision: auditv1.Decision_DECISION_DENY, Reason: reason, Code: codeRefused, Outcome: "refused",
	}
	p.metrics.observe(rec, time.Duration(0))
	if err := p.audit.Append(rec); err != nil {
		p.log.Error("audit record lost", "error", err, "request_id", id)
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
