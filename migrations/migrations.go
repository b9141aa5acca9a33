// Package migrations is the schema of the control plane's database, as numbered SQL files that only go forward: code runs
// on the schema before and after each of them.
package migrations

import "embed"

// FS holds the files, in the form that goose reads.
//
//go:embed *.sql
var FS embed.FS
