package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/mcpvault/mcpvault/dataplane/store"
	"github.com/mcpvault/mcpvault/kit/problem"
)

const (
	handoverLimit = 2 * time.Second
	stopLimit     = 5 * time.Second
	// steadyAfter is how long a log must have been in service for its next failure to count as the first.
	steadyAfter = 30 * time.Second
)

// Run takes part in the log until ctx ends, then hands over leadership and stops. When the log's disk fails it steps out
// and tries again after a while; when the log is damaged it stays out. Both leave the process alone and are told by
// Problem. It returns an error at once when it cannot start at all, as when its address is taken.
func (n *Node) Run(ctx context.Context) error {
	pause := n.cfg.RetryAfter
	for {
		began := time.Now()
		err := n.serve(ctx)
		if ctx.Err() != nil {
			n.end(nil)
			return err
		}
		if errors.Is(err, store.ErrCorrupt) {
			err = problem.Newf(problem.Internal,
				"while the other members are well, stop the node, move "+n.cfg.Dir+" away and start it: they bring it up to date",
				"the cell's log is damaged on node %s", n.cfg.Node).Because(err)
		}
		n.end(err)
		switch {
		case errors.Is(err, store.ErrCorrupt):
			n.log.Error("the cell's log is damaged on this node and stays out of service; decisions go on", "error", err)
			<-ctx.Done()
			return nil
		case errors.Is(err, errStore):
			n.log.Error("the cell's log is out of service on this node; decisions go on", "error", err)
		default:
			return err
		}
		if time.Since(began) > steadyAfter {
			pause = n.cfg.RetryAfter
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, 20*n.cfg.RetryAfter)
	}
}

// serve is one life of the log on this node: from opening its files to closing them.
func (n *Node) serve(ctx context.Context) (err error) {
	if err := os.MkdirAll(n.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("open the cell's log: %w", err)
	}
	life, end := context.WithCancelCause(ctx)
	defer end(nil)
	w := startWriter(n.cfg.WriteLimit, n.cfg.BeforeWrite, end)
	n.writing.Store(w)
	logs, err := openLog(filepath.Join(n.cfg.Dir, "raft.db"), n.cfg.Key, w)
	defer func() { err = errors.Join(err, release(ctx, w, logs)) }()
	if err != nil {
		return fmt.Errorf("open the cell's log: %w", err)
	}
	snaps, err := openSnapshots(filepath.Join(n.cfg.Dir, "snapshots"), n.cfg.Key, n.log)
	if err != nil {
		return fmt.Errorf("open the cell's log: %w", err)
	}
	if err := n.bootstrap(logs, snaps); err != nil {
		return fmt.Errorf("open the cell's log: %w", err)
	}
	layer, err := listen(n)
	if err != nil {
		return fmt.Errorf("listen for the cell's log: %w", err)
	}
	logger := newRaftLogger(n.log)
	transport := &answers{NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: layer, MaxPool: 3, Logger: logger,
		// No pipeline: it can leave a follower behind for good while heartbeats hide it.
		MaxRPCsInFlight: 1,
		Timeout:         4 * n.cfg.Heartbeat,
	}), from: map[string]answer{}}
	conf := n.raftConfig()
	conf.Logger = logger
	machine := &fsm{n: n, turn: make(chan struct{}, 1), fail: func(err error) { _ = w.fail(fmt.Errorf("%w: %w", errStore, err)) }}
	if machine.old, err = logs.LastIndex(); err == nil {
		var r *raft.Raft
		if r, err = newRaft(conf, machine, guard{logs}, snaps, transport); err == nil {
			n.watchElections(r)
			n.begin(r, layer.wire.addr().String(), transport)
			n.attend(life, r, layer)
			n.stop(ctx, r, w, layer, transport.NetworkTransport)
			machine.settle(ctx)
			return w.err()
		}
	}
	return errors.Join(fmt.Errorf("start the cell's log: %w", err), w.err(), transport.Close())
}

// release closes the log's file after the write in progress. A write that hangs holds the file, and the next life waits
// for it; only the end of the process does not.
func release(ctx context.Context, w *writer, logs *logStore) error {
	w.stop()
	select {
	case <-w.ended:
	case <-ctx.Done():
		select {
		case <-w.ended:
		case <-time.After(w.limit):
			return errStalled
		}
	}
	if logs == nil {
		return nil
	}
	return logs.close()
}

func (n *Node) raftConfig() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(n.cfg.Node)
	conf.HeartbeatTimeout = n.cfg.Heartbeat
	conf.ElectionTimeout = n.cfg.Heartbeat
	conf.LeaderLeaseTimeout = n.cfg.Heartbeat
	conf.CommitTimeout = 5 * time.Millisecond
	conf.SnapshotThreshold = n.cfg.SnapshotEvery
	conf.TrailingLogs = n.cfg.SnapshotEvery
	conf.SnapshotInterval = 30 * time.Second
	// Replaying committed entries before the start can hang for ever in this version; the store has them anyway.
	conf.RestoreCommittedLogs = false
	conf.NoLegacyTelemetry = true
	// A node that was removed stays and says so; it has no vote and calls no elections.
	conf.ShutdownOnRemove = false
	return conf
}

// newRaft runs raft.NewRaft where a damaged record can end the goroutine without ending the caller's.
func newRaft(conf *raft.Config, f raft.FSM, g guard, snaps raft.SnapshotStore, t raft.Transport) (r *raft.Raft, err error) {
	err = errStore
	done := make(chan struct{})
	go func() {
		defer close(done)
		cache, cerr := raft.NewLogCache(512, g)
		if cerr != nil {
			err = cerr
			return
		}
		r, err = raft.NewRaft(conf, f, cache, g, snaps, t)
	}()
	<-done
	return r, err
}

// bootstrap writes the first entry, the member list, into an empty log. Every node of a new cell writes the same one; a node that
// joins one writes none, and hears it from the leader.
func (n *Node) bootstrap(logs *logStore, snaps *snapshotStore) error {
	list, err := snaps.List()
	if err != nil {
		return err
	}
	var snapshotIndex uint64
	if len(list) > 0 {
		snapshotIndex = list[0].Index
	}
	if err := logs.checkGap(snapshotIndex); err != nil {
		return err
	}
	last, err := logs.LastIndex()
	if err != nil {
		return err
	}
	if n.cfg.Store.Leases().Index() > max(last, snapshotIndex) {
		// This log is not the one that the leases were written from: it was moved away.
		if err := n.cfg.Store.Leases().Displace(); err != nil {
			return err
		}
	}
	known := n.cfg.Store.Members()
	if last > 0 || len(list) > 0 || known == nil && n.cfg.Join || n.Removed() {
		return nil
	}
	if known == nil {
		known = n.configured()
	}
	var members raft.Configuration
	for _, m := range known.GetMembers() {
		members.Servers = append(members.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(m.GetNode()), Address: raft.ServerAddress(m.GetNode()),
		})
	}
	term, err := logs.GetUint64(keyCurrentTerm)
	if err != nil {
		return err
	}
	if term == 0 {
		if err := logs.SetUint64(keyCurrentTerm, 1); err != nil {
			return err
		}
	}
	return logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(members)})
}

// attend waits for the end of this life, closes connections of members that are no longer admitted, and while this node
// leads looks after the members.
func (n *Node) attend(life context.Context, r *raft.Raft, layer *stream) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var t tended
	for {
		select {
		case <-life.Done():
			return
		case <-r.LeaderCh():
		case <-n.tendNow:
		case <-ticker.C:
			layer.recheck()
		}
		if r.State() == raft.Leader {
			n.tend(life, r, &t)
		}
	}
}

// stop hands over and ends Raft. A disk that hangs may keep one of its goroutines: it is left behind, with a warning.
func (n *Node) stop(ctx context.Context, r *raft.Raft, w *writer, layer *stream, transport *raft.NetworkTransport) {
	if w.err() == nil && !errors.Is(context.Cause(ctx), ErrAbort) {
		hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handoverLimit)
		if err := n.TransferLeadership(hctx); err != nil {
			n.log.Warn("leadership was not handed over", "error", err)
		}
		cancel()
	}
	callers := n.end(w.err())
	future := r.Shutdown()
	_ = layer.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = future.Error()
		callers.Wait()
	}()
	select {
	case <-done:
	case <-time.After(stopLimit):
		// Raft forgets to answer a command that was committed at the moment it stopped, and a disk may hang.
		n.log.Warn("the cell's log did not stop in time; what is left of it is abandoned")
	}
	_ = transport.Close()
}
