// Package catalog holds the drills: what may be lost, who notices, and what is promised meanwhile.
package catalog

import (
	"time"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/drill/rehearse"
)

// All are the drills, in the order in which they are listed and run.
func All() []*rehearse.Drill {
	return []*rehearse.Drill{
		controlPlaneLoss(), postgresLoss(), leaderKill(), nodeLoss(), quorumLoss(), cellLoss(), badSnapshot(), rollbackAttack(), coldBoot(),
		partition(), oneWayPartition(), diskHang(), diskFull(), auditUnwritable(), slowUpstream(), clockSkew(), expiredSVID(),
	}
}

// Find returns the drill with a name.
func Find(name string) (*rehearse.Drill, bool) {
	for _, d := range All() {
		if d.Name == name {
			return d, true
		}
	}
	return nil, false
}

// inFlight is how many requests may be under way on one node at the moment when it dies: their outcome is unknown. At the full load
// that is what a third of the requests of some hundred milliseconds come to.
const inFlight = 60

// The promises in figures.
const (
	// electionLimit is how long a cell may be without a leader.
	electionLimit = 1500 * time.Millisecond
	// bootLimit is how long a node may take from its start to its first right answer.
	bootLimit = 2 * time.Second
	// officeLimit is how long it may take from the start of the control plane to a policy change that every node has.
	officeLimit = 10 * time.Second
	// nextCellLimit is how long callers may be without an answer when their cell dies.
	nextCellLimit = 3 * time.Second
)
