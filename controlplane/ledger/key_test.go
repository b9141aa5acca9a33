package ledger_test

import (
	"crypto/rand"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// otherKey makes a verifier key with a log's name.
func otherKey(t *testing.T, name string) string {
	t.Helper()
	_, key, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
