package catalog

import (
	"context"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/load"
	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

const (
	// skew is how wrong a clock is made, and skewLimit how long a node whose clock is wrong may say that it is ready.
	skew      = "10m"
	skewLimit = 5 * time.Second
	// leeway is how long after its end a token may be taken, and shortToken how long the one lives that is tried.
	leeway     = 60 * time.Second
	shortToken = time.Second
	// shortest is the shortest drill in which that is tried.
	shortest = 10 * time.Second
)

func clockSkew() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "clock-skew",
		Breaks: "sets the clock of a node that does not lead ten minutes ahead, then ten minutes back, and right at the end",
		Blast:  "the node is not ready and refuses what is bound to a time; its clients go to the other nodes",
		Lost:   "the right time on one node", Works: "everything on the other nodes", Until: "no limit",
		Recovers:  "the node says that it is not ready",
		Needs:     []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:     faults(),
		Limits:    rehearse.Limits{RTO: skewLimit},
		Tolerates: []string{"stale"},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			n, err := follower(ctx, r)
			if err != nil {
				return err
			}
			token, err := r.ShortToken(ctx, shortToken)
			if err != nil {
				return err
			}
			if !r.Accepts(n, token) {
				r.Fail("%s takes a token that is good", n.ID())
			}
			r.Keep("token", token)
			r.Keep("expired", time.Now().Add(shortToken))
			r.Recovering()
			return r.Site.SetFault(ctx, "clock "+n.ID()+" ahead "+skew)
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			if err := skewed(ctx, r, "ahead_unready_ms"); err != nil {
				return err
			}
			r.Recovered()
			if err := r.Site.ClearFaults(ctx); err != nil {
				return err
			}
			r.Step("the clock is right again")
			if err := r.Until(ctx, settle, node(r).ID()+" is ready", func(ctx context.Context) bool { return r.Site.Ready(ctx, node(r)) }); err != nil {
				return err
			}
			if err := r.Site.SetFault(ctx, "clock "+node(r).ID()+" behind "+skew); err != nil {
				return err
			}
			return skewed(ctx, r, "behind_unready_ms")
		},
		Mend:  clearFaults,
		Check: expiredToken,
	}
}

// kept are the token that a drill has made, and when it ends; the zero time when it has made none.
func kept(r *rehearse.Run) (load.Person, time.Time) {
	token, _ := r.Kept("token").(load.Person)
	ended, _ := r.Kept("expired").(time.Time)
	return token, ended
}

// skewed waits until the node is not ready, and looks whether the others still are.
func skewed(ctx context.Context, r *rehearse.Run, fact string) error {
	n, began := node(r), time.Now()
	if err := r.Until(ctx, settle, n.ID()+" is not ready", func(ctx context.Context) bool { return !r.Site.Page(ctx, n, "/readyz/clock") }); err != nil {
		return err
	}
	took := time.Since(began)
	r.Fact(fact, float64(took.Milliseconds()))
	r.Step("%s is not ready after %d ms", n.ID(), took.Milliseconds())
	if took > skewLimit {
		r.Fail("%s is not ready within %s of a wrong clock", n.ID(), skewLimit)
	}
	// What its peers hold of it must not spread: that takes them a few seconds.
	for end := time.Now().Add(time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(pollGap) {
		for _, other := range rest(r) {
			if !r.Site.Page(ctx, other, "/readyz/clock") {
				r.Fail("%s doubts its own clock, which is right", other.ID())
				return nil
			}
		}
	}
	return nil
}

// pollGap is between two looks at something that should not change.
const pollGap = 100 * time.Millisecond

// expiredToken waits until a token is past its end by more than the leeway, sets one node's clock back as far as before, and shows the token
// to every node. No node that is ready may take it.
func expiredToken(ctx context.Context, r *rehearse.Run) error {
	token, ended := kept(r)
	if ended.IsZero() || r.For < shortest {
		return nil // A minute would be more than the whole drill takes.
	}
	r.Step("waiting until a token is out of its leeway")
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(ended.Add(leeway + time.Second))):
	}
	if err := r.Site.SetFault(ctx, "clock "+node(r).ID()+" behind "+skew); err != nil {
		return err
	}
	taken := 0
	for _, n := range r.Nodes {
		if !r.Accepts(n, token) {
			continue
		}
		taken++
		if r.Site.Ready(ctx, n) {
			r.Fail("%s is ready and takes a token that ended %d s ago", n.ID(), int(time.Since(ended).Seconds()))
		}
	}
	r.Fact("expired_tokens_taken", float64(taken))
	if err := r.Site.ClearFaults(ctx); err != nil {
		return err
	}
	return r.Until(ctx, settle, "every node is ready", func(ctx context.Context) bool { return ready(ctx, r) })
}

func expiredSVID() *rehearse.Drill {
	return &rehearse.Drill{
		Name:   "expired-svid",
		Breaks: "gives a node that does not lead an SVID of two seconds and does not renew it, and renews it at the end",
		Blast:  "the node hears nothing new and says that it is not ready; its clients are served by the policy that it has",
		Lost:   "the identity of a node", Works: "everything on the other nodes; on that one decisions and calls by the policy that it has", Until: leases,
		Recovers: "its connections have ended, from the SVID's end",
		Needs:    []rehearse.Need{rehearse.Faults, rehearse.ThreeNodes},
		Flags:    faults(),
		Limits:   rehearse.Limits{RTO: identityLimit, Changes: rehearse.Any},
		Break: func(ctx context.Context, r *rehearse.Run) error {
			n, err := follower(ctx, r)
			if err != nil {
				return err
			}
			if err := r.Site.SetFault(ctx, "svid "+n.ID()+" "+lastSVID.String()); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(lastSVID):
			}
			return nil
		},
		Observe: func(ctx context.Context, r *rehearse.Run) error {
			n := node(r)
			r.Recovering()
			for _, page := range []string{"/readyz/identity", "/readyz/controlplane", "/readyz/leader"} {
				if err := r.Until(ctx, 4*identityLimit, n.ID()+" says no at "+page, func(ctx context.Context) bool { return !r.Site.Page(ctx, n, page) }); err != nil {
					return err
				}
			}
			r.Recovered()
			if !r.Ask(n) {
				r.Fail("%s answers from what it has", n.ID())
			}
			return nil
		},
		Mend: clearFaults,
	}
}

const (
	// identityLimit is how long connections may outlive the identity that they were made with.
	identityLimit = 5 * time.Second
	lastSVID      = 2 * time.Second
)
