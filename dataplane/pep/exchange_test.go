package pep

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/dataplane/pdp"
	auditv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/audit/v1"
)

// fullDisk is an audit log that keeps nothing.
type fullDisk struct{}

var errFull = errors.New("no space left on device")

func (fullDisk) NewID() string                                  { return "01TEST" }
func (fullDisk) Append(*auditv1.Record) error                   { return errFull }
func (fullDisk) Intent(context.Context, *auditv1.Record) error  { return errFull }
func (fullDisk) Outcome(context.Context, *auditv1.Record) error { return errFull }
func (fullDisk) MAC([]byte) []byte                              { return nil }

func TestALostRecordOfAnEndedRequestIsLogged(t *testing.T) {
	t.Parallel()
	for row, end := range map[string]func(*exchange){
		"left unanswered": func(*exchange) {},
		"panicked": func(x *exchange) {
			x.started = true
			panic("in the middle of an answer")
		},
		"aborted": func(x *exchange) {
			x.started = true
			panic(http.ErrAbortHandler)
		},
	} {
		var said bytes.Buffer
		p := New(Config{}, Parts{Log: slog.New(slog.NewTextHandler(&said, nil)), Policy: pdp.New("acme"), Audit: fullDisk{}})
		x := p.open(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/mcp", nil))
		func() {
			defer x.close()
			end(x)
		}()
		if n := strings.Count(said.String(), "audit record lost"); n != 1 {
			t.Errorf("%s: said %d times in %q", row, n, said.String())
		}
		if told := strings.Contains(said.String(), "request panicked"); told != (row == "panicked") {
			t.Errorf("%s: %q", row, said.String())
		}
	}
}
