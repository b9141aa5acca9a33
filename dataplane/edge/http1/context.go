package http1

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// requestContext is the context of one request. Unlike those of package context it costs nothing until somebody waits
// for its end, and it tells derived contexts of that end by AfterFunc, without a goroutine for each. The handler may end it
// too, at once or after a time that the server's own clock looks after: that spares a context and a timer for each request.
type requestContext struct {
	base context.Context
	c    *conn

	mu    sync.Mutex
	done  chan struct{} // guarded by mu; made by the first who asks
	err   error         // guarded by mu
	cause error         // guarded by mu
	after []waiter      // guarded by mu
	first [1]waiter     // room for after, which mostly has one
	last  int           // guarded by mu; the number of the newest waiter
	// until is when the context ends by itself, by the server's clock, and why; 0 for never.
	until int64 // guarded by mu
	why   error // guarded by mu
}

// waiter is somebody to be told of the end.
type waiter struct {
	number int
	f      func()
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Deadline says that there is none.
func (x *requestContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Done is closed when the client has left, the request was answered or the server ends it.
func (x *requestContext) Done() <-chan struct{} {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.done == nil {
		if x.err != nil {
			x.done = closed
		} else {
			x.done = make(chan struct{})
		}
	}
	return x.done
}

// Err is context.Canceled once Done is closed.
func (x *requestContext) Err() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// Value gives the local address, and what the server's base context has. The cause of the end of the server is found this
// way too.
func (x *requestContext) Value(key any) any {
	if key == http.LocalAddrContextKey {
		return x.c.nc.LocalAddr()
	}
	return x.base.Value(key)
}

// AfterFunc has f called, in a goroutine of its own, when the context has ended.
func (x *requestContext) AfterFunc(f func()) (stop func() bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err != nil {
		go f()
		return func() bool { return false }
	}
	if x.after == nil {
		x.after = x.first[:0]
	}
	x.last++
	number := x.last
	x.after = append(x.after, waiter{number, f})
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		i := slices.IndexFunc(x.after, func(w waiter) bool { return w.number == number })
		if i < 0 {
			return false
		}
		x.after = slices.Delete(x.after, i, i+1)
		return true
	}
}

// End ends the context for a reason of the handler's, context.Canceled when that is nil; only the first end counts.
func (x *requestContext) End(cause error) {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = context.Canceled
	if x.cause = cause; cause == nil {
		x.cause = context.Canceled
	}
	after := x.after
	x.after = nil
	if x.done != nil {
		close(x.done)
	} else {
		x.done = closed
	}
	x.mu.Unlock()
	for _, w := range after {
		go w.f()
	}
}

// EndAfter ends the context for that reason in d, not sooner and up to two ticks of the server's clock later, in place of
// the time that was set before; 0 or less is never.
func (x *requestContext) EndAfter(d time.Duration, cause error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.until, x.why = 0, nil; d > 0 {
		x.until, x.why = x.c.srv.clock.Load()+int64(d)+int64(x.c.srv.tick), cause
	}
}

// Cause is why the context has ended, nil while it has not. The end of the client or of the server is the base context's
// cause when that has one, and context.Canceled else.
func (x *requestContext) Cause() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.cause
}

// end ends the context because the client has left, the answer is sent or the server wants it.
func (x *requestContext) end() {
	cause := context.Cause(x.base)
	x.End(cause)
}

// expire ends the context when its time has come.
func (x *requestContext) expire(now int64) {
	x.mu.Lock()
	over, why := x.until != 0 && x.err == nil && now >= x.until, x.why
	x.mu.Unlock()
	if over {
		x.End(why)
	}
}
