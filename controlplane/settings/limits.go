package settings

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

// The bounds of a rate limit. A cell refuses a snapshot with others.
const (
	MaxRequests = 1_000_000
	MinPer      = time.Second
	MaxPer      = 24 * time.Hour
)

// maxLimits bounds the limits of one tenant.
const maxLimits = 1000

func checkLimits(limits map[string]*adminv1.RateLimit) error {
	for _, subject := range slices.Sorted(maps.Keys(limits)) {
		scope, name, named := strings.Cut(subject, "/")
		server, tool, _ := strings.Cut(name, "/")
		switch {
		case !slices.Contains(controlplane.RateScopes(), scope):
			return problem.Newf(problem.Invalid, "use one of "+strings.Join(controlplane.RateScopes(), ", "), "%q is nothing that has a limit", scope)
		case named && scope != "principal" && scope != "server" && scope != "tool":
			return problem.Newf(problem.Invalid, "write "+scope+" alone", "%q names one of what there is one of", subject)
		case named && scope == "tool" && (server == "" || tool == ""):
			return problem.Newf(problem.Invalid, "write it like tool/payments/refund", "%q names no tool", subject)
		}
		r := limits[subject]
		per := r.GetPer().AsDuration()
		if r.GetRequests() == 0 {
			continue
		}
		if r.GetRequests() < 0 || r.GetRequests() > MaxRequests || r.GetBurst() < 0 || r.GetBurst() > MaxRequests || per < MinPer || per > MaxPer {
			return problem.Newf(problem.Invalid, "give 1 to 1000000 requests in 1s to 24h, and a burst of at most 1000000",
				"the limit for %s cannot be %d per %s with a burst of %d", subject, r.GetRequests(), per, r.GetBurst())
		}
	}
	return nil
}

func mergeLimits(l controlplane.RateLimits, req *adminv1.UpdateSettingsRequest) (controlplane.RateLimits, error) {
	l.Rates = maps.Clone(l.Rates)
	if req.MaxCalls != nil {
		l.MaxCalls = int64(req.GetMaxCalls())
	}
	for subject, r := range req.GetRateLimits() {
		if r.GetRequests() == 0 {
			delete(l.Rates, subject)
			continue
		}
		l.Rates[subject] = controlplane.RateLimit{
			Requests: r.GetRequests(), Per: r.GetPer().AsDuration().Truncate(time.Millisecond), Burst: cmp.Or(r.GetBurst(), r.GetRequests()),
		}
	}
	if len(l.Rates) > maxLimits {
		return l, problem.Newf(problem.Invalid, "take some away", "there would be %d limits: at most %d", len(l.Rates), maxLimits)
	}
	return l, nil
}

func showLimits(l controlplane.RateLimits) map[string]*adminv1.RateLimit {
	out := make(map[string]*adminv1.RateLimit, len(l.Rates))
	for subject, r := range l.Rates {
		out[subject] = &adminv1.RateLimit{Requests: r.Requests, Per: durationpb.New(r.Per), Burst: r.Burst}
	}
	return out
}

func describeLimits(l controlplane.RateLimits) map[string]string {
	out := make(map[string]string, len(l.Rates))
	for subject, r := range l.Rates {
		out[subject] = fmt.Sprintf("%d/%s burst %d", r.Requests, r.Per, r.Burst)
	}
	return out
}
