package egress_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/kit/egress"
)

func TestKeysComeOverAWireThatNobodyElseWritesTo(t *testing.T) {
	t.Parallel()
	for raw, good := range map[string]bool{
		"https://login.example/keys": true, "http://127.0.0.1:18200/jwks": true, "http://[::1]/jwks": true, "http://localhost:1/": true,
		"http://login.example/keys": false, "http://127.0.0.1.evil.example/": false, "ftp://127.0.0.1/": false, "https://": false, "/jwks": false,
		"https://user@login.example/": false, "https://login.example/#a": false, "file:///etc/passwd": false, "http://0x7f.1/": false,
	} {
		if err := egress.CheckSecure(raw); (err == nil) != good {
			t.Errorf("%s: %v", raw, err)
		}
	}
}
