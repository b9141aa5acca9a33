package cellapi

import (
	"context"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"time"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/kit/svid"
	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

const (
	// enrolLimit is how long a caller without an SVID may be connected at all.
	enrolLimit = 10 * time.Second
	// maxEnrolment bounds what such a caller may send, in bytes.
	maxEnrolment = 16 << 10
	// enrolments bounds how many are answered at the same time, and strangers how many connections there may be.
	enrolments = 8
	strangers  = 64
)

// Enroll makes a node of whoever holds a join token.
func (s *Service) Enroll(ctx context.Context, req *cellv1.EnrollRequest) (*cellv1.EnrollResponse, error) {
	if s.cfg.Machines == nil {
		return nil, problem.New(problem.Invalid, "this control plane enrols no nodes", "")
	}
	select {
	case s.enrolling <- struct{}{}:
		defer func() { <-s.enrolling }()
	default:
		return nil, problem.New(problem.Exhausted, "other machines are joining", "try again in a second")
	}
	return s.cfg.Machines.Enroll(ctx, req)
}

// RenewIdentity gives the node that its SVID names another one.
func (s *Service) RenewIdentity(ctx context.Context, req *cellv1.RenewIdentityRequest) (*cellv1.RenewIdentityResponse, error) {
	n := nodeFrom(ctx)
	if err := s.alive(n); err != nil {
		return nil, err
	}
	if s.cfg.Machines == nil {
		return nil, problem.New(problem.Invalid, "this control plane issues no SVIDs", "")
	}
	id, err := s.cfg.Machines.Renew(ctx, n.Cell, n.Name, req.GetCsr())
	if err != nil {
		return nil, err
	}
	return &cellv1.RenewIdentityResponse{Identity: id}, nil
}

// Admit lets in nodes of the trust domain until they are killed; the guard gives one that was the time to hear of it.
func (s *Service) Admit(trustDomain string) svid.Authorizer {
	node := svid.AnyCellNode(trustDomain)
	return func(peer svid.ID) error {
		if err := node(peer); err != nil {
			return err
		}
		cell, name, _ := svid.ParseNode(peer.String())
		return s.alive(Node{cell, name})
	}
}

// TLS is the configuration of the API's listener, which the guard has wrapped: nodes of the trust domain show their SVIDs; who
// has none yet says so by the name it asks for, gets no further than Enroll, and is cut off after ten seconds.
//
// A node that was killed still gets in, for as long as it takes to tell it so: the guard ends the connection.
func (s *Service) TLS(id svid.Identity, guard *svid.Guard, trustDomain string) *tls.Config {
	nodes := guard.ServerTLS(svid.AnyCellNode(trustDomain), s.Admit(trustDomain), "h2")
	if s.cfg.Machines == nil {
		return nodes
	}
	introduction := svid.IntroductionTLS(id, "h2")
	var open atomic.Int64
	cfg := nodes.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if hello.ServerName != svid.IntroductionName {
			return nodes.GetConfigForClient(hello)
		}
		// A place is given back when the time is over, not when the caller hangs up: that bounds how many come in a second, too.
		if open.Add(1) > strangers {
			open.Add(-1)
			return nil, errors.New("too many callers without an SVID")
		}
		time.AfterFunc(enrolLimit, func() {
			open.Add(-1)
			_ = hello.Conn.Close()
		})
		return introduction, nil
	}
	return cfg
}
