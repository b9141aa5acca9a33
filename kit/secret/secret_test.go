package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/secret"
)

func TestNoEncoderShowsTheValue(t *testing.T) {
	t.Parallel()
	const canary = "hunter2-canary"
	v := secret.New([]byte(canary))
	box := struct{ Password secret.Value }{v}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&out, verb+"\n", v)
		fmt.Fprintf(&out, verb+"\n", box)
	}
	if err := json.NewEncoder(&out).Encode(box); err != nil {
		t.Fatal(err)
	}
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v, "box", box)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
	if strings.Contains(out.String(), canary) {
		t.Fatalf("the secret was printed:\n%s", out.String())
	}
	if string(v.Reveal()) != canary {
		t.Fatal("Reveal must return the value")
	}
}
