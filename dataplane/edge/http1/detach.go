package http1

// stay is who carries a request on.
type stay uint8

const (
	stayHere     stay = iota // the handler, until it returns
	stayDetached             // somebody else, once the handler has returned
	stayLeft                 // somebody else: the handler has returned
	stayOver                 // nobody: the answer was finished before the handler returned
)

// Detach lets the handler return before the answer is over: a stream then takes the connection and its state, but neither a
// goroutine nor a buffer of the server while nothing is written. Whoever has the request and the writer may go on using
// both, until they call finish, which they must, once, and which ends the answer as the return of a handler does. It may be
// called at any time, and waits for nothing. The handler must have flushed the header, which is gone then.
//
// There is no finish, and the handler has to stay, while any of the request's body is unread.
func (x *exchange) Detach() (finish func(), ok bool) {
	if !x.body.wasRead() || !x.dropHeader() {
		return nil, false
	}
	x.c.mu.Lock()
	defer x.c.mu.Unlock()
	if x.c.x != x || x.stay != stayHere {
		return nil, false
	}
	x.stay = stayDetached
	return x.finishDetached, true
}

// dropHeader gives the header up, when it was sent.
func (x *exchange) dropHeader() bool {
	x.wmu.Lock()
	defer x.wmu.Unlock()
	if x.sent {
		x.header = nil
	}
	return x.sent
}

func (x *exchange) finishDetached() {
	c := x.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.x != x:
	case x.stay == stayDetached:
		x.stay = stayOver
	case x.stay == stayLeft:
		x.stay = stayOver
		go c.resume(x)
	}
}

// leave reports, when the handler has returned, whether somebody else carries the request on. From then on the connection
// is theirs.
func (x *exchange) leave() bool {
	c := x.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.panicked || x.stay != stayDetached {
		return false
	}
	c.rest(x)
	// Of what is kept for the next request the most would be kept for long.
	c.head.forget()
	c.target, c.respHeader = "", nil
	x.stay = stayLeft
	return true
}

// resume goes on with a connection whose handler had left.
func (c *conn) resume(x *exchange) {
	if !c.finish(x) {
		c.close()
		return
	}
	c.serve()
}
