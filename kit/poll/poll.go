// Package poll tells when sockets have something to read, or when the other side has gone, for any number of them with one
// goroutine and without a buffer: nothing is read. It does so on Linux; elsewhere it watches nothing, and says so.
package poll

// What is waited for. An error on the socket counts as either.
type What uint32

// ID names a watch; 0 names none.
type ID uint64
