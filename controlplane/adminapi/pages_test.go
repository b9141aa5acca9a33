package adminapi_test

import (
	"io"
	"net/http"
	"testing"
)

func TestPagesNeedNoToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for path, want := range map[string]string{
		"/livez": "ok\n", "/readyz": "ok\n", "/readyz?verbose": "[+]postgres ok\n[+]calm ok\nok\n", "/readyz/calm": "ok\n",
		"/readyz?verbose&exclude=postgres": "[ ]postgres excluded\n[+]calm ok\nok\n", "/version": `{"version":"test"}` + "\n",
	} {
		if body, status := get(t, b.url+path); status != http.StatusOK || body != want {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
	for _, path := range []string{"/readyz/nothing", "/metrics", "/elsewhere"} {
		if _, status := get(t, b.url+path); status != http.StatusNotFound {
			t.Errorf("%s: %d", path, status)
		}
	}
}

func get(t *testing.T, url string) (string, int) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body), res.StatusCode
}
