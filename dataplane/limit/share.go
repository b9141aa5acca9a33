package limit

import (
	"context"
	"slices"
	"sync"
)

// How a budget is shared. Every node begins with an equal part of each budget and spends only its own. A node that wants
// less than its part gives of it to those that want more, with what it has saved up: it lowers its own part first and then tells
// the other, by counters that only grow, so that a lost or repeated message changes nothing. No node takes anything by itself. The parts
// of all nodes therefore never come to more than the whole, whoever can reach whom, and need neither a leader nor a quorum;
// a node that is alone goes on with the part that it has, of which an eighth of an equal part always stays with it.
//
// The bound: within any t seconds the nodes of a cell let through at most
//
//	rate * t + burst + one request for each node
//
// of one budget (one a node, because what a node can save up is rounded up to one request). A node that starts anew has
// forgotten what it gave away: it adds at most its equal part of the burst, and of the rate until the others have heard
// from it, which is the next exchange. So does one that forgets a budget for which nobody has asked for ten minutes while
// the node that had its part was away.

const (
	// whole can be divided by 3 and by 5.
	whole = 15 << 26
	// floorOf is what part of an equal part a node keeps in any case.
	floorOf = 8
	// slack is by how much of an equal part a part may be off before it is moved.
	slack = 50
	// freshLooks is for how many looks a peer's word counts.
	freshLooks = 5
	// forgetLooks is after how many looks without demand a part is forgotten that is not an equal one.
	forgetLooks = 600
	// EntriesPerMessage bounds one message between nodes.
	EntriesPerMessage = 512
)

// share is this node's part of one budget.
type share struct {
	// born tells this memory of the budget from any earlier one.
	born  uint64
	parts int64 // of whole
	quiet int   // looks since anybody wanted something
	peers []pair
}

// pair is what this node and a peer have given each other since both began to remember.
type pair struct {
	born      uint64 // the peer's; 0 while nothing was heard
	gave, got uint64
	// What was saved up and given along, in parts of a full burst.
	gaveSaved, gotSaved uint64

	demand float64
	parts  int64
	heard  int // the look at which it was heard
}

// Entry is what a node tells another about one budget.
type Entry struct {
	Key  Key
	Rate Rate
	// Born and PeerBorn tell which memories the counters are between. Gave is all that was given in them, of whole; Saved is
	// what was saved up and given along, of whole for a full burst.
	Born, PeerBorn, Gave, Saved uint64
	// Demand is in requests a second; Parts is what the teller has of whole.
	Demand float64
	Parts  int64
}

func (l *Limiter) nodes() int64 { return int64(len(l.cfg.Peers) + 1) }

func (l *Limiter) equal() int64 { return whole / l.nodes() }

// part is what this node has of a budget. The lock is held.
func (l *Limiter) part(k Key) float64 {
	if s, ok := l.shares[k]; ok {
		return l.effective(s.parts)
	}
	return l.effective(l.equal())
}

// effective is never nothing: a node that is told of a debt still serves a little.
func (l *Limiter) effective(parts int64) float64 {
	if len(l.cfg.Peers) == 0 {
		return 1
	}
	return float64(min(max(parts, l.equal()/floorOf/floorOf), whole)) / whole
}

func (l *Limiter) share(k Key) *share {
	s, ok := l.shares[k]
	if !ok {
		l.born++
		s = &share{born: l.born, parts: l.equal(), peers: make([]pair, len(l.cfg.Peers))}
		l.shares[k] = s
	}
	return s
}

// Exchange looks at what is wanted here and talks to every peer once. ask sends a message to a peer and returns its answer;
// what cannot be sent changes nothing. Call it about once a second.
func (l *Limiter) Exchange(ctx context.Context, ask func(ctx context.Context, peer string, out []Entry) ([]Entry, error)) {
	l.mu.Lock()
	l.look()
	l.review()
	l.mu.Unlock()
	var wg sync.WaitGroup
	for i, peer := range l.cfg.Peers {
		out := l.offer(i)
		if len(out) == 0 {
			continue
		}
		wg.Go(func() {
			for some := range slices.Chunk(out, EntriesPerMessage) {
				in, err := ask(ctx, peer, some)
				if err != nil {
					return
				}
				l.take(i, in)
			}
		})
	}
	wg.Wait()
}

// Meet takes what a peer says and returns what there is to say about the same budgets. A stranger is told nothing.
func (l *Limiter) Meet(peer string, in []Entry) []Entry {
	i := slices.Index(l.cfg.Peers, peer)
	if i < 0 || len(in) > EntriesPerMessage {
		return nil
	}
	return l.take(i, in)
}

// review decides which budgets are talked about, settles those, and forgets the rest.
func (l *Limiter) review() {
	if len(l.cfg.Peers) == 0 {
		return
	}
	wanted := map[Key]float64{}
	for i := range l.shard {
		s := &l.shard[i]
		s.mu.RLock()
		for k, b := range s.m {
			c := b.credit.Load()
			most := c.part * float64(c.rate.Requests) / c.rate.Per.Seconds()
			// What is far from its part needs nobody's help.
			if _, known := l.shares[k]; (known || b.demand > most/4) && b.demand > 0 {
				wanted[k] = b.demand
			}
		}
		s.mu.RUnlock()
	}
	for k := range wanted {
		if len(l.shares) < l.cfg.MaxBuckets {
			l.share(k)
		}
	}
	for k, s := range l.shares {
		demand := wanted[k]
		if s.quiet++; demand > little || l.wantedElsewhere(s) {
			s.quiet = 0
		}
		if s.quiet > forgetLooks || s.quiet > idleLooks && l.settled(s) {
			delete(l.shares, k)
			l.apply(k, l.equal())
			continue
		}
		l.settle(k, s, demand)
	}
}

// little is a demand, in requests a second, that is none.
const little = 1e-3

func (l *Limiter) wantedElsewhere(s *share) bool {
	for i := range s.peers {
		if p := &s.peers[i]; l.fresh(p) && p.demand > little {
			return true
		}
	}
	return false
}

// settled reports whether nobody owes anybody anything worth the name.
func (l *Limiter) settled(s *share) bool {
	off := s.parts - l.equal()
	return max(off, -off) < 64
}

func (l *Limiter) fresh(p *pair) bool { return p.born != 0 && l.looks-p.heard <= freshLooks }

// settle gives to the peers that want more than they have what this node has more than it wants. Those that have not been
// heard of for a while keep what they have.
func (l *Limiter) settle(k Key, s *share, demand float64) {
	sum, live, all := demand, int64(1), s.parts
	for i := range s.peers {
		if p := &s.peers[i]; l.fresh(p) {
			sum += p.demand
			all += p.parts
			live++
		}
	}
	floor := l.equal() / floorOf
	target := func(demand float64) int64 {
		if sum < little || all < live*floor {
			return all / live
		}
		return floor + int64(float64(all-live*floor)*demand/sum)
	}
	tolerance := l.equal() / slack
	if sum < little {
		tolerance = 0
	}
	var gifts []int64
	if surplus := s.parts - target(demand); live > 1 && surplus > tolerance {
		gifts = l.give(s, surplus, target)
	}
	saved, all := l.apply(k, s.parts), int64(0)
	for _, gift := range gifts {
		all += gift
	}
	for i, gift := range gifts {
		if gift > 0 {
			s.peers[i].gaveSaved += uint64(saved * float64(gift) / float64(all))
		}
	}
}

// apply gives the bucket, if there is one, its part from now on, and returns what it had saved up beyond that, in parts of a
// full burst.
func (l *Limiter) apply(k Key, parts int64) (saved float64) {
	b := l.find(&k)
	if b == nil {
		return 0
	}
	rate := b.credit.Load().rate
	over := b.adjust(rate, l.effective(parts), l.now())
	return float64(over) / (float64(rate.Burst) * unit) * whole
}

// deposit puts into the bucket what a peer had saved up.
func (l *Limiter) deposit(k Key, saved uint64) {
	if b := l.find(&k); b != nil && saved > 0 {
		b.deposit(int64(float64(saved)/whole*float64(b.credit.Load().rate.Burst)*unit), l.now())
	}
}

// give lowers this node's part by what each peer gets.
func (l *Limiter) give(s *share, surplus int64, target func(float64) int64) []int64 {
	missing := int64(0)
	for i := range s.peers {
		if p := &s.peers[i]; l.fresh(p) {
			missing += max(0, target(p.demand)-p.parts)
		}
	}
	if missing == 0 {
		return nil
	}
	gifts := make([]int64, len(s.peers))
	for i := range s.peers {
		p := &s.peers[i]
		if lacks := target(p.demand) - p.parts; l.fresh(p) && lacks > 0 {
			gift := min(lacks, int64(float64(surplus)*float64(lacks)/float64(missing)))
			s.parts -= gift
			p.gave += uint64(gift)
			p.parts += gift
			gifts[i] = gift
		}
	}
	return gifts
}

// offer is what there is to say to a peer. Where this node's part was lowered, that has happened before.
func (l *Limiter) offer(i int) []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Entry, 0, len(l.shares))
	for k, s := range l.shares {
		out = append(out, l.entry(k, s, i))
	}
	return out
}

func (l *Limiter) entry(k Key, s *share, i int) Entry {
	p := &s.peers[i]
	e := Entry{Key: k, Born: s.born, PeerBorn: p.born, Gave: p.gave, Saved: p.gaveSaved, Parts: s.parts}
	if b := l.find(&k); b != nil {
		e.Demand, e.Rate = b.demand, b.credit.Load().rate
	}
	return e
}

// take hears what peer i says and returns what this node says about the same.
func (l *Limiter) take(i int, in []Entry) []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Entry, 0, len(in))
	for _, e := range in {
		if !e.valid() {
			continue
		}
		if _, known := l.shares[e.Key]; !known && len(l.shares) >= l.cfg.MaxBuckets {
			continue
		}
		s := l.share(e.Key)
		b := l.find(&e.Key)
		if b == nil && e.Rate.Valid() && l.count.Load() < int64(l.cfg.MaxBuckets) {
			// What this node has saved up, which is all of its part, can be given along.
			b = l.put(e.Key, e.Rate, l.now())
		}
		saved, heard := l.hear(s, &s.peers[i], e)
		if !heard {
			continue
		}
		l.apply(e.Key, s.parts)
		l.deposit(e.Key, saved)
		demand := 0.0
		if b != nil {
			demand = b.demand
		}
		l.settle(e.Key, s, demand)
		out = append(out, l.entry(e.Key, s, i))
	}
	return out
}

// maxName bounds the names in a message.
const maxName = 512

func (e *Entry) valid() bool {
	return e.Key.Scope < scopes && e.Born != 0 && e.Gave <= 1<<62 && e.Saved <= 1<<62 && e.Demand >= 0 && e.Demand <= 1e12 &&
		e.Parts >= -whole && e.Parts <= 2*whole &&
		len(e.Key.Tenant) <= maxName && len(e.Key.Name) <= maxName && len(e.Key.Item) <= maxName
}

// hear keeps what a peer says of one budget. A peer that has begun anew has forgotten what was given either way: so does
// this node. saved is what the peer gave along that is new.
func (l *Limiter) hear(s *share, p *pair, e Entry) (saved uint64, heard bool) {
	if e.Born < p.born {
		return 0, false // from before
	}
	if e.Born > p.born {
		s.parts += int64(p.gave) - int64(p.got)
		*p = pair{born: e.Born}
	}
	if e.PeerBorn == s.born && e.Gave > p.got && e.Gave-p.got <= whole {
		s.parts += int64(e.Gave - p.got)
		p.got = e.Gave
	}
	if e.PeerBorn == s.born && e.Saved > p.gotSaved && e.Saved-p.gotSaved <= whole {
		saved, p.gotSaved = e.Saved-p.gotSaved, e.Saved
	}
	p.demand, p.parts, p.heard = e.Demand, e.Parts, l.looks
	return saved, true
}
