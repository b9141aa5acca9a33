package bridge

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// Session names a client's session: its hash.
type Session [16]byte

// Dialogues is what a node remembers of the legacy sessions in which the gateway leads the dialogue: the log level that was
// set, the requests that run, what servers asked and the client has not answered, what it subscribed to. It is not shared:
// a client that goes to another node starts with none of it.
type Dialogues struct {
	max int
	now func() time.Time

	mu sync.Mutex
	m  map[Session]*Dialogue // guarded by mu
}

// NewDialogues makes room for so many sessions.
func NewDialogues(limit int, now func() time.Time) *Dialogues {
	return &Dialogues{max: limit, now: now, m: map[Session]*Dialogue{}}
}

// Of returns what is remembered of a session, made when there is nothing; when there is no room it is one that nobody else
// will find.
func (d *Dialogues) Of(s Session) *Dialogue {
	d.mu.Lock()
	defer d.mu.Unlock()
	one, ok := d.m[s]
	if !ok {
		one = &Dialogue{changed: make(chan struct{})}
		if len(d.m) < d.max {
			d.m[s] = one
		}
	}
	one.used = d.now()
	return one
}

// Find is Of for callers who have no use for an empty one; nil when there is nothing.
func (d *Dialogues) Find(s Session) *Dialogue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m[s]
}

// End forgets a session.
func (d *Dialogues) End(s Session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.m, s)
}

// Sweep forgets the sessions that nothing was heard of for so long, and in which nothing runs.
func (d *Dialogues) Sweep(idle time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	limit := d.now().Add(-idle)
	maps.DeleteFunc(d.m, func(_ Session, one *Dialogue) bool { return one.used.Before(limit) && one.quiet() })
}

// Len counts the sessions that something is remembered of.
func (d *Dialogues) Len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.m)
}

// Dialogue is one session's.
type Dialogue struct {
	used time.Time // guarded by Dialogues.mu

	mu      sync.Mutex
	level   string
	running map[string]context.CancelCauseFunc
	asked   map[string]Reply
	uris    map[string]struct{}
	tasks   map[string]string
	changed chan struct{} // closed when uris change
}

// Reply takes a client's response to a server's request. The context is that of the request which brought it.
type Reply func(context.Context, *mcp.Message)

// Bounds of one session.
const (
	maxAsked   = 64
	maxRunning = 1024
	// MaxURIs is how many resources one session or stream may be subscribed to.
	MaxURIs = 256
	// maxTasks is how many tasks of a session are remembered; it hears nothing of the rest unasked.
	maxTasks = 256
)

func (d *Dialogue) quiet() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.running) == 0 && len(d.asked) == 0
}

// SetLevel sets the log level of the session.
func (d *Dialogue) SetLevel(level string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.level = level
}

// Level is the one that was set, "" for none.
func (d *Dialogue) Level() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.level
}

// Run notes a request, by its raw id, that Cancel can cancel until done is called.
func (d *Dialogue) Run(id []byte, cancel context.CancelCauseFunc) (done func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := string(id)
	if _, twice := d.running[key]; twice || len(d.running) >= maxRunning {
		return func() {}
	}
	if d.running == nil {
		d.running = map[string]context.CancelCauseFunc{}
	}
	d.running[key] = cancel
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.running, key)
	}
}

// Cancel cancels the request with that raw id, if it runs.
func (d *Dialogue) Cancel(id []byte, cause error) {
	d.mu.Lock()
	cancel := d.running[string(id)]
	d.mu.Unlock()
	if cancel != nil {
		cancel(cause)
	}
}

// Ask notes a question to the client and returns the id to put it under, which nobody can guess; false when too many wait.
func (d *Dialogue) Ask(reply Reply) (id string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.asked) >= maxAsked {
		return "", false
	}
	if d.asked == nil {
		d.asked = map[string]Reply{}
	}
	id = "mv-" + rand.Text()
	d.asked[id] = reply
	return id, true
}

// Answered takes the question with that id out; false when it was not asked in this session, or is answered.
func (d *Dialogue) Answered(id string) (Reply, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	reply, ok := d.asked[id]
	delete(d.asked, id)
	return reply, ok
}

// Subscribe adds a resource; false when there are too many.
func (d *Dialogue) Subscribe(uri string) bool {
	return d.subscriptions(func() bool {
		if d.uris == nil {
			d.uris = map[string]struct{}{}
		}
		d.uris[uri] = struct{}{}
		return len(d.uris) <= MaxURIs
	}, uri)
}

// Unsubscribe takes a resource out.
func (d *Dialogue) Unsubscribe(uri string) {
	d.subscriptions(func() bool { return false }, uri)
}

// subscriptions changes the set, in which uri is left only when change says so.
func (d *Dialogue) subscriptions(change func() bool, uri string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, was := d.uris[uri]
	keep := change()
	if !keep {
		delete(d.uris, uri)
	}
	if keep != was {
		close(d.changed)
		d.changed = make(chan struct{})
	}
	return keep
}

// Subscribed lists the resources in order, and a channel that is closed when that is no longer so.
func (d *Dialogue) Subscribed() ([]string, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.uris)), d.changed
}

// Began notes a task of the session: the server's own id of it, and the one by which the client knows it.
func (d *Dialogue) Began(id, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tasks == nil {
		d.tasks = map[string]string{}
	}
	if _, known := d.tasks[id]; !known && len(d.tasks) < maxTasks {
		d.tasks[id] = text
	}
}

// Task is the id by which the client knows a task; false for one that is not this session's.
func (d *Dialogue) Task(id string) (text string, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	text, ok = d.tasks[id]
	return text, ok
}
