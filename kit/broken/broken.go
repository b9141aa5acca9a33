// Package broken lets a build be wrong in one way, on purpose, to prove that whoever looks for that fault finds it: a checker that
// has never found anything proves nothing. Without the build tag `broken` every question is answered no before the program
// runs, and no such code is in it.
//
//	go build -tags broken -ldflags "-X github.com/mcpvault/mcpvault/kit/broken.way=drop-outcome" ./cmd/mcpvault
package broken
