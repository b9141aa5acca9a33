package run

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Build is what the binary knows of its own making.
type Build struct {
	// Version is the module's version, "devel" when it was built from a working tree.
	Version string
	// Commit is the first twelve digits, with "+dirty" when the tree had changes; empty when unknown.
	Commit string
	// Go is the toolchain's version.
	Go string
}

// Version is the build of this binary.
func Version() Build {
	b := Build{Version: "devel", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	return b.from(info)
}

func (b Build) from(info *debug.BuildInfo) Build {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		b.Version = v
	}
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if dirty && b.Commit != "" {
		b.Commit += "+dirty"
	}
	return b
}

// String is one line for people: "v0.3.0 (0123456789ab, go1.26.8, linux/amd64)".
func (b Build) String() string {
	var facts []string
	if b.Commit != "" {
		facts = append(facts, b.Commit)
	}
	facts = append(facts, b.Go, runtime.GOOS+"/"+runtime.GOARCH)
	return b.Version + " (" + strings.Join(facts, ", ") + ")"
}
