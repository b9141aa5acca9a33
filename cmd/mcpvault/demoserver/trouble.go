package demoserver

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"time"
)

// Trouble is what is wrong with a server on purpose; the zero value is nothing.
type Trouble struct {
	// Slow is how much later each request is answered.
	Slow time.Duration
	// Hang means that none is, until the trouble is over.
	Hang bool
}

// trouble holds requests back.
type trouble struct {
	mu      sync.Mutex // Guards what is below.
	now     Trouble
	changed chan struct{} // Closed when now changes; nil while nobody waits.
}

// SetTrouble makes exactly this be wrong. Requests that hang go on.
func (s *Server) SetTrouble(t Trouble) {
	s.trouble.mu.Lock()
	defer s.trouble.mu.Unlock()
	s.trouble.now = t
	if s.trouble.changed != nil {
		close(s.trouble.changed)
		s.trouble.changed = nil
	}
}

func (t *trouble) look() (Trouble, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.now, t.changed
}

// wait holds a request for as long as the trouble says; false when its client has gone.
func (t *trouble) wait(r *http.Request) bool {
	came := time.Now()
	for {
		now, changed := t.look()
		rest := time.Until(came.Add(now.Slow))
		if !now.Hang && rest <= 0 {
			return true
		}
		var over <-chan time.Time
		if !now.Hang {
			over = time.After(rest)
		}
		select {
		case <-over:
		case <-changed:
		case <-r.Context().Done():
			return false
		}
	}
}

// maxBody bounds a request that is held back.
const maxBody = 4 << 20

// held puts the trouble before a handler.
func (t *trouble) held(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if now, _ := t.look(); now != (Trouble{}) {
			// Only once it is read does the server notice that the client has gone.
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			if err != nil || !t.wait(r) {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		h.ServeHTTP(w, r)
	})
}
