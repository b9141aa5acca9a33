package inject_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/dataplane/inject"
	"github.com/mcpvault/mcpvault/dataplane/pdp"
)

var acme = &pdp.Tenant{Name: "acme"}

func at(name, url string) *pdp.Server { return &pdp.Server{Name: name, URL: url} }

func rule(t *testing.T, value string) inject.Rule {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
	return inject.Rule{
		Name: "pay-token", Tenant: "acme", Server: "pay", Origin: "https://pay.example.com", Header: "authorization",
		Prefix: "Bearer ", File: file,
	}
}

func TestACredentialGoesToItsServerAtItsOriginOnly(t *testing.T) {
	t.Parallel()
	r := rule(t, "s3cret\n")
	f, err := inject.New([]inject.Rule{r}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]error{
		"https://pay.example.com/mcp": nil, "https://PAY.example.com:443/mcp": nil, "https://pay.example.com": nil,
		"https://pay.example.com.evil.example/mcp": inject.ErrDestination, "http://pay.example.com/mcp": inject.ErrDestination,
		"https://pay.example.com:8443/mcp": inject.ErrDestination, "https://pay.example.com@evil.example/mcp": inject.ErrDestination,
		"": inject.ErrDestination,
	} {
		set := http.Header{}
		_, err := f.Inject(t.Context(), acme, at("pay", url), set)
		if !errors.Is(err, want) || (err == nil) != (set.Get("Authorization") == "Bearer s3cret") {
			t.Errorf("%s: %v, %v", url, err, set)
		}
	}
	for _, other := range []struct {
		t *pdp.Tenant
		s string
	}{{acme, "mail"}, {&pdp.Tenant{Name: "globex"}, "pay"}} {
		set := http.Header{}
		if _, err := f.Inject(t.Context(), other.t, at(other.s, "https://pay.example.com/mcp"), set); err != nil || len(set) > 0 {
			t.Errorf("%s of %s: %v, %v", other.s, other.t.Name, err, set)
		}
		if f.Secrets(other.t, at(other.s, "")) != nil {
			t.Error("a secret of another server")
		}
	}
	if got := f.Secrets(acme, at("pay", "")); len(got) != 1 || got[0] != "pay-token" {
		t.Errorf("secrets: %v", got)
	}
}

func TestARotatedFileIsReadAgainAndALostOneStaysInUse(t *testing.T) {
	t.Parallel()
	r := rule(t, "old-value")
	now := time.Now()
	f, err := inject.New([]inject.Rule{r}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	value := func() string {
		set := http.Header{}
		leaks, err := f.Inject(t.Context(), acme, at("pay", r.Origin), set)
		if err != nil {
			t.Fatal(err)
		}
		if len(leaks) != 1 || "Bearer "+string(leaks[0]) != set.Get("Authorization") {
			t.Errorf("what must not come back is %q", leaks)
		}
		return set.Get("Authorization")
	}
	if err := os.WriteFile(r.File, []byte("new-value"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(r.File, now.Add(time.Hour), now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := value(); got != "Bearer old-value" {
		t.Errorf("within the second: %s", got)
	}
	now = now.Add(2 * time.Second)
	if got := value(); got != "Bearer new-value" {
		t.Errorf("after it: %s", got)
	}
	if err := os.Remove(r.File); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	if got := value(); got != "Bearer new-value" {
		t.Errorf("without its file: %s", got)
	}
}

func TestAValueThatNoHeaderMayHoldIsRefusedAtTheStartAndNotShown(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "\n", "a\r\nX-Admin: yes", "a\x00b", strings.Repeat("a", 17<<10)} {
		if _, err := inject.New([]inject.Rule{rule(t, value)}, time.Now); err == nil || strings.Contains(err.Error(), "X-Admin") {
			t.Errorf("%.20q: %v", value, err)
		}
	}
	r := rule(t, "x")
	r.File += ".missing"
	if _, err := inject.New([]inject.Rule{r}, time.Now); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestMistakesInRulesAreNamed(t *testing.T) {
	t.Parallel()
	good := rule(t, "x")
	for want, change := range map[string]func(*inject.Rule){
		"are all required": func(r *inject.Rule) { r.Name = "" },
		"origin":           func(r *inject.Rule) { r.Origin = "https://pay.example.com/mcp" },
		"header":           func(r *inject.Rule) { r.Header = "Mcp-Session-Id" },
		"header \"Host\"":  func(r *inject.Rule) { r.Header = "Host" },
		"prefix":           func(r *inject.Rule) { r.Prefix = "a\nb" },
	} {
		r := good
		change(&r)
		if p := inject.Check([]inject.Rule{r}); len(p) != 1 || !strings.Contains(p[0], want) {
			t.Errorf("%s: %v", want, p)
		}
	}
	if p := inject.Check([]inject.Rule{good, good}); len(p) != 1 || !strings.Contains(p[0], "two values") {
		t.Errorf("twice: %v", p)
	}
	if p := inject.Check([]inject.Rule{good}); p != nil {
		t.Error(p)
	}
}
