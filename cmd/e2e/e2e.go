// Package e2e holds the tests that run the real thing: `mcpvault dev` with its real processes, clients that were not
// written here, and signals that cannot be caught.
package e2e
