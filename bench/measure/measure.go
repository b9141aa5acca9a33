// Package measure turns timings into the few figures that are quoted. Machines are shared and noisy: it reports medians
// and percentiles, and comparisons are ratios of rounds that ran in turn in the same run.
package measure

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Percentile returns the p-th percentile (0..100) of d, which it sorts; 0 for none.
func Percentile(d []time.Duration, p float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[min(len(d)-1, int(p/100*float64(len(d))))]
}

// Median of a list of figures, which it sorts; 0 for none.
func Median(f []float64) float64 {
	if len(f) == 0 {
		return 0
	}
	slices.Sort(f)
	if n := len(f); n%2 == 0 {
		return (f[n/2-1] + f[n/2]) / 2
	}
	return f[len(f)/2]
}

// ClockCost is the median cost of reading the clock twice: what a call timed by itself costs too much.
func ClockCost() time.Duration {
	d := make([]time.Duration, 20_000)
	for i := range d {
		t := time.Now()
		d[i] = time.Since(t)
	}
	return Percentile(d, 50)
}

// Each times n calls one by one, with the clock's own cost taken off.
func Each(n int, call func(i int)) []time.Duration {
	cost := ClockCost()
	d := make([]time.Duration, n)
	for i := range d {
		t := time.Now()
		call(i)
		d[i] = max(0, time.Since(t)-cost)
	}
	return d
}

// Mean times rounds of n calls, each round as a whole: the median round's nanoseconds a call, and the fewest allocations a
// call, because those that the rest of the process makes count too.
func Mean(rounds, n int, call func(i int)) (ns, allocs float64) {
	var took []float64
	var before, after runtime.MemStats
	for round := range rounds {
		runtime.ReadMemStats(&before)
		begin := time.Now()
		for i := range n {
			call(i)
		}
		elapsed := time.Since(begin)
		runtime.ReadMemStats(&after)
		took = append(took, float64(elapsed.Nanoseconds())/float64(n))
		if made := float64(after.Mallocs-before.Mallocs) / float64(n); round == 0 || made < allocs {
			allocs = made
		}
	}
	return Median(took), allocs
}

// CPU is the user and system time that a process has used.
func CPU(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command's name may hold spaces; the fields after its closing parenthesis do not.
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 13 {
		return 0, fmt.Errorf("process %d: unreadable stat", pid)
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	if err != nil {
		return 0, err
	}
	sys, err := strconv.ParseInt(f[12], 10, 64)
	if err != nil {
		return 0, err
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux port of Go
	return time.Duration(user+sys) * tick, nil
}

// Machine says where figures come from, in one line.
func Machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	load := "?"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(b), " ")
	}
	var u syscall.Utsname
	kernel := runtime.GOOS
	if syscall.Uname(&u) == nil {
		var sb strings.Builder
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			sb.WriteByte(byte(c))
		}
		kernel = sb.String()
	}
	return fmt.Sprintf("%d x %s, Linux %s, %s, load %s", runtime.NumCPU(), model, kernel, runtime.Version(), load)
}
