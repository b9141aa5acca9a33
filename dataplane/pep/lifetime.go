package pep

import (
	"context"
	"time"
)

// endable is a request's context that the front ends for its handler, at once or in a time by its own clock. It spares a
// context and a timer for each request.
type endable interface {
	context.Context
	End(cause error)
	// EndAfter replaces the time that was set before; 0 or less is never.
	EndAfter(d time.Duration, cause error)
	Cause() error
	// AfterFunc is that of package context, which uses it too but takes a context and a channel more.
	AfterFunc(f func()) (stop func() bool)
}

// lifetime is how long a request may take.
type lifetime struct {
	front endable // nil where the front has none; then ctx is the lifetime's own
	ctx   context.Context
	stop  context.CancelCauseFunc
	timer *time.Timer
}

// begin gives a request its context.
func (l *lifetime) begin(parent context.Context) context.Context {
	if e, ok := parent.(endable); ok {
		l.front = e
		return e
	}
	l.ctx, l.stop = context.WithCancelCause(parent)
	return l.ctx
}

// within ends the request in d for a cause, in place of the time that was set before.
func (l *lifetime) within(d time.Duration, cause error) {
	d = max(d, time.Millisecond)
	if l.front != nil {
		l.front.EndAfter(d, cause)
		return
	}
	l.forever()
	stop := l.stop // l may be another request's by the time that the timer fires
	l.timer = time.AfterFunc(d, func() { stop(cause) })
}

// forever takes the time back that was set.
func (l *lifetime) forever() {
	if l.front != nil {
		l.front.EndAfter(0, nil)
	} else if l.timer != nil {
		l.timer.Stop()
	}
}

// end ends the request, from any goroutine.
func (l *lifetime) end(cause error) {
	if l.front != nil {
		l.front.End(cause)
		return
	}
	l.stop(cause)
}

// after has f called, in a goroutine of its own, when the request has ended.
func (l *lifetime) after(f func()) (stop func() bool) {
	if l.front != nil {
		return l.front.AfterFunc(f)
	}
	return context.AfterFunc(l.ctx, f)
}

// cause is why the request has ended, nil while it has not.
func (l *lifetime) cause() error {
	if l.front != nil {
		return l.front.Cause()
	}
	return context.Cause(l.ctx)
}
