package feed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	cellv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/cell/v1"
)

// maxAnswers bounds what waits to be said: more than there are tenants and kills to speak of.
const maxAnswers = 1 << 15

// answers wait for a control plane that listens slowly. Of one thing only the newest is kept, so that neither memory nor what is
// taken from the stream depends on how slowly.
type answers struct {
	wake chan struct{}

	mu    sync.Mutex // guards all below
	order []string
	about map[string]*cellv1.AcknowledgeRequest
}

func newAnswers() *answers {
	return &answers{wake: make(chan struct{}, 1), about: map[string]*cellv1.AcknowledgeRequest{}}
}

func (a *answers) add(r *cellv1.AcknowledgeRequest, newest bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := fmt.Sprintf("%s %d %s", r.GetTenantId(), r.GetStatus(), r.GetKillId())
	if _, waits := a.about[key]; !waits {
		if len(a.order) >= maxAnswers {
			return // all are said again on the next connection
		}
		a.order = append(a.order, key)
	} else if !newest {
		return
	}
	a.about[key] = r
	poke(a.wake)
}

func (a *answers) next() *cellv1.AcknowledgeRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.order) == 0 {
		return nil
	}
	key := a.order[0]
	a.order = a.order[1:]
	r := a.about[key]
	delete(a.about, key)
	return r
}

// judged reports whether the control plane has read an answer and will not have it, however often it is said.
func judged(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeInvalidArgument, connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeNotFound, connect.CodeUnimplemented:
		return true
	default:
		return false
	}
}

// ack leaves an answer for the control plane.
func (f *Feed) ack(r *cellv1.AcknowledgeRequest) { f.answers.add(r, true) }

// answerLimit bounds the delivery of one answer.
const answerLimit = 5 * time.Second

// acknowledge delivers the answers one after the other. One that did not arrive is said again, unless there is a newer one by
// then; while there is no connection nothing is, because the next begins with all of them.
func (f *Feed) acknowledge(ctx context.Context) {
	wait := retryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.answers.wake:
		}
		for r := f.answers.next(); r != nil && ctx.Err() == nil; r = f.answers.next() {
			if !f.Connected() {
				continue
			}
			sctx, cancel := context.WithTimeout(ctx, answerLimit)
			_, err := f.cfg.ControlPlane.Acknowledge(sctx, r)
			cancel()
			if err == nil {
				wait = retryMin
				continue
			}
			if ctx.Err() == nil {
				f.log.WarnContext(ctx, "acknowledgement was not delivered", "err", err, "retry_in", wait)
			}
			if !judged(err) {
				f.answers.add(r, false)
			}
			pause(ctx, wait/2+rand.N(wait/2+1)) //nolint:gosec // a jitter needs no secrecy
			wait = min(2*wait, retryMax)
		}
	}
}
