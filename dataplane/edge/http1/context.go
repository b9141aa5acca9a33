package http1

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"
)

// requestContext is the context of one request. Unlike those of package context it costs nothing until somebody waits
// for its end, and it tells derived contexts of that end by AfterFunc, without a goroutine for each.
type requestContext struct {
	base context.Context
	c    *conn

	mu    sync.Mutex
	done  chan struct{} // guarded by mu; made by the first who asks
	err   error         // guarded by mu
	after []*func()     // guarded by mu
	first [1]*func()    // room for after, which mostly has one
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
	x.after = append(x.after, &f)
	return func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		i := slices.Index(x.after, &f)
		if i < 0 {
			return false
		}
		x.after = slices.Delete(x.after, i, i+1)
		return true
	}
}

// end ends the context; only the first call does something.
func (x *requestContext) end() {
	x.mu.Lock()
	if x.err != nil {
		x.mu.Unlock()
		return
	}
	x.err = context.Canceled
	after := x.after
	x.after = nil
	if x.done != nil {
		close(x.done)
	} else {
		x.done = closed
	}
	x.mu.Unlock()
	for _, f := range after {
		go (*f)()
	}
}
