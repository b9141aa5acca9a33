//go:build !broken

package broken_test

import (
	"testing"

	"github.com/mcpvault/mcpvault/kit/broken"
)

func TestNoUsualBuildIsBroken(t *testing.T) {
	t.Parallel()
	if broken.Is("") || broken.Is("drop-outcome") {
		t.Error("a build without the tag is broken")
	}
}
