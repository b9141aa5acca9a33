package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"

	"github.com/hashicorp/raft"
)

// keyCurrentTerm is Raft's own name for the term in the stable store.
var keyCurrentTerm = []byte("CurrentTerm")

// guard stands between Raft and the log store. In two places Raft panics when its store fails, which would end the
// decisions along with the log; here the log goes out of service instead.
type guard struct{ *logStore }

// SetUint64 reports success for a term that could not be written, because Raft panics otherwise. The log is out of
// service from that moment, and what Raft may still do until it has stopped is safe: it can store neither a vote nor an
// entry, so it promises nothing in that term.
func (g guard) SetUint64(key []byte, v uint64) error {
	err := g.logStore.SetUint64(key, v)
	if err != nil && bytes.Equal(key, keyCurrentTerm) {
		return nil
	}
	return err
}

// GetLog ends the calling goroutine, one of Raft's, when a record is damaged: Raft panics on the error. Deferred work is
// done as on any return, and the log goes out of service.
func (g guard) GetLog(index uint64, out *raft.Log) error {
	err := g.logStore.GetLog(index, out)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) {
		return err
	}
	_ = g.w.fail(fmt.Errorf("read entry %d: %w", index, err))
	runtime.Goexit()
	return err
}
