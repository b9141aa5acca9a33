package feed

import "context"

// What the stream brings takes effect before it is on the disk, and is written down beside the stream: a disk that hangs must not
// keep the next kill from being heard.

// hearKill lets a kill take effect at once and leaves it to be kept, spread and acknowledged.
func (f *Feed) hearKill(env []byte) error {
	if err := f.enforce(env); err != nil {
		return err
	}
	select {
	case f.unkept <- env:
	default:
		// The control plane sends it again on the next connection, as it was not acknowledged.
		f.log.Error("a kill is in force and not on the disk, which does not keep up")
	}
	return nil
}

// enforce verifies a kill and lets it take effect. It only ever denies.
func (f *Feed) enforce(env []byte) error {
	kill, err := f.openKill(env)
	if err == nil {
		f.cfg.PDP.Kill(kill)
	}
	return err
}

// keep writes down kills and the newest heartbeat until ctx ends.
func (f *Feed) keep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case env := <-f.unkept:
			if err := f.TakeKill(env); err != nil {
				f.log.ErrorContext(ctx, "a kill is in force and not on the disk", "err", err)
			}
		case <-f.beaten:
			f.connMu.Lock()
			env, ms, confirmed := f.beat, f.heartbeat.GetTimeMs(), f.confirmed
			f.connMu.Unlock()
			if env != nil {
				if err := f.cfg.Store.PutHeartbeat(env, ms); err != nil {
					f.log.ErrorContext(ctx, "keep heartbeat", "err", err)
				}
			}
			f.keepConfirmed(confirmed)
		}
	}
}
