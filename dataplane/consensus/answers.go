package consensus

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// answer is what a follower last told its leader.
type answer struct {
	at   time.Time
	last uint64 // the end of its log
}

// answers is Raft's transport that notes what followers answer: Raft keeps that to itself.
type answers struct {
	*raft.NetworkTransport

	mu   sync.Mutex // guards from
	from map[string]answer
}

// AppendEntries carries entries, and heartbeats, to a follower.
func (a *answers) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	err := a.NetworkTransport.AppendEntries(id, target, args, resp)
	if err == nil && resp.Term <= args.Term {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.from[string(id)] = answer{time.Now(), resp.LastLog}
	}
	return err
}

// of is what a node has answered in this life; a nil a knows nothing.
func (a *answers) of(node string) (answer, bool) {
	if a == nil {
		return answer{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	got, ok := a.from[node]
	return got, ok
}
