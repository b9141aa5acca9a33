package manage

import (
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mcpvault/mcpvault/cmd/mcpvault/cli"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

func viewRates(limits map[string]*adminv1.RateLimit) map[string]string {
	out := make(map[string]string, len(limits))
	for subject, r := range limits {
		out[subject] = fmt.Sprintf("%d/%s+%d", r.GetRequests(), lasting(r.GetPer()), r.GetBurst())
	}
	return out
}

// parseRates reads words like principal=100/1s+200 and tenant=default.
func parseRates(words []string) (map[string]*adminv1.RateLimit, error) {
	out := make(map[string]*adminv1.RateLimit, len(words))
	for _, word := range words {
		subject, rate, ok := strings.Cut(word, "=")
		if !ok || subject == "" {
			return nil, badRate(word)
		}
		if rate == "default" {
			out[subject] = &adminv1.RateLimit{}
			continue
		}
		r, err := parseRate(rate)
		if err != nil {
			return nil, badRate(word)
		}
		out[subject] = r
	}
	return out, nil
}

func badRate(word string) error {
	return problem.Newf(problem.Invalid, "write it like --rate-limit principal=100/1s+200, or principal=default to take it away", "%q is no rate limit", word)
}

func parseRate(s string) (*adminv1.RateLimit, error) {
	requests, rest, ok := strings.Cut(s, "/")
	if !ok {
		return nil, strconv.ErrSyntax
	}
	per, burst, hasBurst := strings.Cut(rest, "+")
	n, err := strconv.ParseInt(requests, 10, 64)
	if err != nil || n <= 0 {
		return nil, strconv.ErrSyntax
	}
	d, err := cli.Duration(per)
	if err != nil {
		return nil, err
	}
	r := &adminv1.RateLimit{Requests: n, Per: durationpb.New(d)}
	if hasBurst {
		if r.Burst, err = strconv.ParseInt(burst, 10, 64); err != nil || r.GetBurst() <= 0 {
			return nil, strconv.ErrSyntax
		}
	}
	return r, nil
}

// parseMaxCalls reads a number or the word default; "" is nothing.
func parseMaxCalls(s string) (*uint32, error) {
	var n uint32
	switch s {
	case "":
		return nil, nil
	case "default":
		return &n, nil
	}
	v, err := strconv.ParseUint(s, 10, 32)
	if err != nil || v == 0 {
		return nil, problem.Newf(problem.Invalid, "give a number from 1 to 100000, or default", "%q is no number of calls", s)
	}
	n = uint32(v)
	return &n, nil
}
