package pep

import (
	"net"
	"net/netip"

	"github.com/mcpvault/mcpvault/dataplane/limit"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// Malformed records a request that the listener refused before it was one: its head could not be read in one way only.
// The status and the word for why are the listener's.
func (p *PEP) Malformed(from net.Addr, status int, reason string) {
	rec := p.turnedAway(from, codeRefused, reason)
	rec.HttpStatus = int32(status)
	p.keep(rec)
}

// TurnedAway records a caller whose connection, handshake or stream a listener did not take, before there was a request. One
// such record a second of each address is kept in full and the others are counted; those who have proved no address are one
// source, so that forged ones cannot fill the log.
func (p *PEP) TurnedAway(from net.Addr, reason string) {
	rec := p.turnedAway(from, codeRefused, reason)
	rec.Method = "connection"
	p.metrics.observe(rec, 0)
	k := limit.Key{Tenant: turnedAwayKey, Name: rec.GetClient().GetAddress(), Item: reason}
	_, skipped, keep := p.flood.Keep(k, rec.GetId(), p.cfg.Now(), func() *auditv1.Record { return rec })
	if !keep {
		return
	}
	rec.Repeated = skipped
	if err := p.audit.Append(rec); err != nil {
		p.log.Error("audit record lost", "error", err, "request_id", rec.GetId())
	}
}

// turnedAwayKey stands where the keys of other floods have a tenant.
const turnedAwayKey = "\x00connections"

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

// host is the address of a connection without its port; nil is nobody's in particular.
func host(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return bounded(a.String(), 64)
	}
	return ap.Addr().Unmap().WithZone("").String()
}
