//go:build broken

package broken

// way is set by the linker.
var way string

// Is reports whether this build is broken in the way.
func Is(name string) bool { return name == way }
