// Package dataplane is the cell's vocabulary. A cell is one regional Raft group that serves MCP clients; a node is one
// member of it. Whatever a node does for a caller, it does from what it has verified and holds itself.
package dataplane

// NodeName names a node within its cell.
type NodeName string

// CellName names a cell.
type CellName string
