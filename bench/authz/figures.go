package authz

import "fmt"

// Figures is one run. The names of the fields say what a number counts: nanoseconds, microseconds or milliseconds of one
// decision, list, compilation ...; p50 and p99 are of calls timed one by one, the clock's own median cost taken off, and
// the median of several rounds.
type Figures struct {
	Machine string `json:"machine"`
	Users   int    `json:"users"`
	Tenants int    `json:"tenants"`
	Grants  int    `json:"grants"`

	// The live view: principal and server are fixed, as in a session. Of these calls a share is settled by a condition,
	// most of them on arguments, whose JSON is read in the measured time; these are told by themselves as well.
	ViewP50          float64 `json:"view_p50_ns"`
	ViewP99          float64 `json:"view_p99_ns"`
	ViewMean         float64 `json:"view_mean_ns"`
	ViewAllocs       float64 `json:"view_allocs"`
	ConditionalShare float64 `json:"view_conditional_share"`
	ConditionalP50   float64 `json:"view_conditional_p50_ns"`
	ConditionalP99   float64 `json:"view_conditional_p99_ns"`
	AllowedShare     float64 `json:"view_allowed_share"`

	// Cold: any principal of any tenant by its number, no view at hand, caches swept before each round.
	ColdP50    float64 `json:"cold_p50_ns"`
	ColdP99    float64 `json:"cold_p99_ns"`
	ColdMean   float64 `json:"cold_mean_ns"`
	ColdAllocs float64 `json:"cold_allocs"`

	// List50 lists a server of 50 tools for principals that see all of them and have conditions there; Listed counts what
	// is shown, the one surface that every server has besides its tools included.
	List50     float64 `json:"list50_ns"`
	ListAllocs float64 `json:"list50_allocs"`
	Listed     float64 `json:"listed"`

	// BytesPerUser is all memory of the opened indexes, in pages outside of the heap and on it; HeapBytesPerUser is the
	// part of it that Go's collector knows of.
	BytesPerUser     float64 `json:"bytes_per_user"`
	HeapBytesPerUser float64 `json:"heap_bytes_per_user"`
	ShardBytes       int     `json:"shard_bytes_max"`

	// Open is from the sealed files on a cell's disk, in the page cache, to decrypted, verified, bounds-checked indexes.
	Open1M  float64 `json:"open_ms_1m"`
	Open10k float64 `json:"open_ms_10k"`
	// The processor time of the same, which a busy machine does not stretch as much.
	OpenCPU1M  float64 `json:"open_cpu_ms_1m"`
	OpenCPU10k float64 `json:"open_cpu_ms_10k"`
	// Shards1M says how many different shards the figures for a million users were measured on: with fewer than 100, each
	// was opened several times, and what their compilation took was scaled.
	Shards1M int `json:"distinct_shards_1m"`

	// Delta is one user's new role: body and signature on the wire, and to verify the signature and make the next index.
	DeltaBytes int     `json:"delta_bytes"`
	DeltaApply float64 `json:"delta_apply_us"`

	// Compile is from rows to shards, index and catalogue; of a million users on all processors.
	Compile10k float64 `json:"compile_ms_10k"`
	Compile1M  float64 `json:"compile_ms_1m"`
	// The processor time of the same, the collector's included.
	CompileCPU10k float64 `json:"compile_cpu_ms_10k"`
	CompileCPU1M  float64 `json:"compile_cpu_ms_1m"`
}

// Row is a figure for people, with what it is meant to stay below.
type Row struct{ What, Value, Bound string }

// Rows are the figures that there are bounds for.
func (f *Figures) Rows() []Row {
	row := func(what, unit string, value, bound float64) Row {
		here := fmt.Sprintf("%.4g %s", value, unit)
		if value >= 1000 {
			here = fmt.Sprintf("%.0f %s", value, unit)
		}
		return Row{what, here, fmt.Sprintf("%g %s", bound, unit)}
	}
	return []Row{
		row("live view, p50", "ns", f.ViewP50, 50),
		row("live view, p99", "ns", f.ViewP99, 500),
		row("settled by a condition, p50", "ns", f.ConditionalP50, 500),
		row("settled by a condition, p99", "ns", f.ConditionalP99, 500),
		row("cold principal, p50", "ns", f.ColdP50, 1000),
		row("cold principal, p99", "ns", f.ColdP99, 5000),
		row("allocations a decision", "", f.ViewAllocs+f.ColdAllocs, 0),
		row("list of 50 tools", "ns", f.List50, 2000),
		row("memory a user", "B", f.BytesPerUser, 200),
		row("open and verify 1M users", "ms", f.Open1M, 250),
		row("open and verify 10k users", "ms", f.Open10k, 5),
		row("one role change on the wire", "B", float64(f.DeltaBytes), 200),
		row("one role change, verify and apply", "us", f.DeltaApply, 100),
		row("compile 10k users", "ms", f.Compile10k, 50),
		row("compile 1M users", "ms", f.Compile1M, 3000),
	}
}
