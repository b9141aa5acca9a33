package canary_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/bench/drill/canary"
)

func start(t *testing.T) *canary.Server {
	t.Helper()
	s, err := canary.Start("", []canary.Tool{{Name: "read"}, {Name: "write", Effects: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func post(t *testing.T, s *canary.Server, body string) (int, string) {
	t.Helper()
	resp, err := http.Post(s.URL(), "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestCallsAreCountedByTheirIDs(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, id := range []string{"a", "b", "a"} {
		if _, body := post(t, s, `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write","arguments":{"call":"`+id+`"}}}`); !strings.Contains(body, `"text":"`+id+`"`) {
			t.Errorf("answered %s", body)
		}
	}
	if got := s.Take(); !maps.Equal(got, map[string]int{"a": 2, "b": 1}) {
		t.Errorf("counted %v", got)
	}
	if got := s.Take(); len(got) != 0 {
		t.Errorf("counted %v after all were taken", got)
	}
}

func TestItOffersItsTools(t *testing.T) {
	t.Parallel()
	_, body := post(t, start(t), `{"jsonrpc":"2.0","id":1,"method":"tools/list"}`)
	var m struct {
		Result struct {
			Tools []struct {
				Name        string
				Annotations struct{ ReadOnlyHint bool }
			}
		}
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatal(err)
	}
	if got := m.Result.Tools; len(got) != 2 || !got[0].Annotations.ReadOnlyHint || got[1].Annotations.ReadOnlyHint {
		t.Errorf("offered %+v", got)
	}
}

func TestItCanBeSlowAndQuickAgain(t *testing.T) {
	t.Parallel()
	s := start(t)
	const call = `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"call":"x"}}}`
	s.Delay(100 * time.Millisecond)
	begin := time.Now()
	post(t, s, call)
	if took := time.Since(begin); took < 100*time.Millisecond {
		t.Errorf("took %s", took)
	}
	s.Delay(0)
	post(t, s, call)
	if got := s.Take()["x"]; got != 2 {
		t.Errorf("counted %d", got)
	}
}

func TestWhatIsNoRequestIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	for body, want := range map[string]int{"{": http.StatusBadRequest, `{"jsonrpc":"2.0","method":"notifications/initialized"}`: http.StatusAccepted} {
		if got, _ := post(t, s, body); got != want {
			t.Errorf("%s: status %d, want %d", body, got, want)
		}
	}
}
