package adminapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mcpvault/mcpvault/kit/nearest"
	"github.com/mcpvault/mcpvault/kit/problem"
)

// checkLimit bounds each check of /readyz.
const checkLimit = 2 * time.Second

// Check is one thing that must be well before requests are sent here.
type Check struct {
	Name string
	// Run returns nil when it is well. It is called often, by anybody, and must be cheap.
	Run func(ctx context.Context) error
}

// mountPages adds what is asked without a token: health, version, metrics, where the cells are.
func mountPages(mux *http.ServeMux, cfg Config) {
	// Alive says only that the process answers: restarting it would not bring PostgreSQL back.
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { ready(w, r, cfg.Ready) })
	mux.HandleFunc("GET /readyz/{check}", func(w http.ResponseWriter, r *http.Request) {
		i := slices.IndexFunc(cfg.Ready, func(c Check) bool { return c.Name == r.PathValue("check") })
		if i < 0 {
			http.NotFound(w, r)
			return
		}
		ready(w, r, cfg.Ready[i:i+1])
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(cfg.Build) // the reader went away
	})
	if cfg.MetricsPage != nil {
		mux.Handle("GET /metrics", cfg.MetricsPage)
	}
	if cfg.CellsPage != nil {
		mux.Handle("GET "+nearest.Path, cfg.CellsPage)
	}
}

// ready runs the checks at once. ?exclude=NAME leaves one out, ?verbose lists them.
func ready(w http.ResponseWriter, r *http.Request, checks []Check) {
	ctx, cancel := context.WithTimeout(r.Context(), checkLimit)
	defer cancel()
	excluded := r.URL.Query()["exclude"]
	lines, failed := make([]string, len(checks)), make([]bool, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		if slices.Contains(excluded, c.Name) {
			lines[i] = fmt.Sprintf("[ ]%s excluded\n", c.Name)
			continue
		}
		wg.Go(func() {
			err := c.Run(ctx)
			failed[i] = err != nil
			lines[i] = fmt.Sprintf("[+]%s ok\n", c.Name)
			if err != nil {
				lines[i] = fmt.Sprintf("[-]%s failed: %s\n", c.Name, sentence(err))
			}
		})
	}
	wg.Wait()
	status, verdict := http.StatusOK, "ok\n"
	if slices.Contains(failed, true) {
		status, verdict = http.StatusServiceUnavailable, "not ready\n"
	}
	if r.URL.Query().Has("verbose") {
		verdict = strings.Join(lines, "") + verdict
	}
	text(w, status, verdict)
}

// sentence is what a stranger may read of an error.
func sentence(err error) string {
	if p, ok := problem.As(err); ok {
		return p.What
	}
	return "see the log"
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the reader went away
}
