// Package mcpvault is the root of the module; it holds nothing but the test of its import rules.
package mcpvault
