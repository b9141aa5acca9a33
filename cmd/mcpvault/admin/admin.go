// Package admin is the CLI's way to the control plane: one connection, every service, and errors that a person can act
// on. It promises that what it returns after Problem says what failed and what to do next, whichever side noticed it.
package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"github.com/mcpvault/mcpvault/kit/problem"
	"github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1/adminv1connect"
)

// maxMessage bounds an answer: a snapshot with its shards is the largest.
const maxMessage = 256 << 20

// Client has every service of the control plane.
type Client struct {
	URL           string
	Organisations adminv1connect.OrganisationServiceClient
	Directory     adminv1connect.DirectoryServiceClient
	Registry      adminv1connect.RegistryServiceClient
	Endpoints     adminv1connect.EndpointServiceClient
	Settings      adminv1connect.SettingsServiceClient
	Access        adminv1connect.AccessServiceClient
	Policies      adminv1connect.PolicyServiceClient
	Issuers       adminv1connect.IssuerServiceClient
	Identity      adminv1connect.IdentityServiceClient
	Tokens        adminv1connect.TokenServiceClient
	Snapshots     adminv1connect.SnapshotServiceClient
	Cells         adminv1connect.CellAdminServiceClient
	Sessions      adminv1connect.SessionServiceClient
	Audit         adminv1connect.AuditServiceClient
	System        adminv1connect.SystemServiceClient
}

// Config says which control plane, and as whom.
type Config struct {
	URL   string
	Token string
	// CAFile holds the certificates to check the server against, PEM; "" for the system's.
	CAFile string
	// Version is this program's, for the control plane's log.
	Version string
}

// Dial makes a client. It reads CAFile and connects at the first call.
func Dial(cfg Config) (*Client, error) {
	if !strings.HasPrefix(cfg.URL, "http://") && !strings.HasPrefix(cfg.URL, "https://") {
		return nil, problem.Newf(problem.Invalid, "give it as http://HOST:PORT or https://HOST:PORT", "%q is not an address", cfg.URL)
	}
	base, err := HTTPTransport(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	hc := &http.Client{
		Transport:     bearer{base: base, token: cfg.Token, agent: "mcpvault/" + cfg.Version},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	c := connect.NewClient(connecthttp.NewTransport(hc, strings.TrimRight(cfg.URL, "/"), connecthttp.WithReadMaxBytes(maxMessage)))
	return &Client{
		URL:           cfg.URL,
		Organisations: adminv1connect.NewOrganisationServiceClient(c),
		Directory:     adminv1connect.NewDirectoryServiceClient(c),
		Registry:      adminv1connect.NewRegistryServiceClient(c),
		Endpoints:     adminv1connect.NewEndpointServiceClient(c),
		Settings:      adminv1connect.NewSettingsServiceClient(c),
		Access:        adminv1connect.NewAccessServiceClient(c),
		Policies:      adminv1connect.NewPolicyServiceClient(c),
		Issuers:       adminv1connect.NewIssuerServiceClient(c),
		Identity:      adminv1connect.NewIdentityServiceClient(c),
		Tokens:        adminv1connect.NewTokenServiceClient(c),
		Snapshots:     adminv1connect.NewSnapshotServiceClient(c),
		Cells:         adminv1connect.NewCellAdminServiceClient(c),
		Sessions:      adminv1connect.NewSessionServiceClient(c),
		Audit:         adminv1connect.NewAuditServiceClient(c),
		System:        adminv1connect.NewSystemServiceClient(c),
	}, nil
}

// HTTPTransport is a transport that trusts the certificates in caFile besides none other, or the system's for "". It takes
// no proxy from the environment: what it carries are tokens.
func HTTPTransport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		ForceAttemptHTTP2: true, DialContext: (&net.Dialer{}).DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13},
	}
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, problem.New(problem.Invalid, "the certificates to trust cannot be read", "check ca_file of the context, or --cacert").Because(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, problem.Newf(problem.Invalid, "check ca_file of the context, or --cacert", "%s holds no certificate", caFile)
	}
	t.TLSClientConfig.RootCAs = pool
	return t, nil
}

// bearer adds the token to each request.
type bearer struct {
	base         http.RoundTripper
	token, agent string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", b.agent)
	if b.token != "" {
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.base.RoundTrip(r)
}

// Problem turns an error of a call into one for a person. Any other error comes back as it is.
func Problem(err error, url string) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if !ce.IsRemote() {
		return local(ce, url)
	}
	what, fix := ce.Message(), fixOf(ce)
	code := problem.FromRPC(ce.Code().String())
	if what == "" {
		what = "the control plane answered " + ce.Code().String()
	}
	if fix == "" {
		fix = defaultFix(code)
	}
	return problem.New(code, what, fix)
}

// local is a failure that this side noticed: nothing readable came back.
func local(ce *connect.Error, url string) error {
	switch {
	case ce.Code() == connect.CodeDeadlineExceeded || errors.Is(ce, context.DeadlineExceeded):
		return problem.Newf(problem.Timeout, "raise --timeout, or look with `mcpvault doctor`", "no answer from %s in time", url).Because(ce)
	case ce.Code() == connect.CodeCanceled:
		return problem.New(problem.Timeout, "stopped", "").Because(ce)
	}
	var cert *tls.CertificateVerificationError
	if errors.As(ce, &cert) {
		return problem.Newf(problem.Unavailable, "give the authority's certificates with --cacert", "the certificate of %s is not trusted", url).Because(cert.Err)
	}
	return problem.Newf(problem.Unavailable, "start it with `mcpvault dev`, or choose another with `mcpvault context use`",
		"the control plane at %s cannot be reached", url).Because(ce)
}

// fixOf reads the next step from the error's details.
func fixOf(ce *connect.Error) string {
	for _, d := range ce.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			continue // A detail of a newer server.
		}
		if info, ok := msg.(*errdetails.ErrorInfo); ok && info.GetMetadata()["fix"] != "" {
			return info.GetMetadata()["fix"]
		}
	}
	return ""
}

func defaultFix(c problem.Code) string {
	switch c {
	case problem.Unauthenticated:
		return "log in with `mcpvault login`"
	case problem.Denied:
		return "see who you are with `mcpvault whoami`; use the token of an administrator"
	case problem.Internal:
		return "the control plane's log says more; look with `mcpvault doctor`"
	case problem.Unavailable, problem.Exhausted, problem.Timeout:
		return "try again, or look with `mcpvault doctor`"
	default:
		return ""
	}
}

// IsConflict reports whether the thing to be made is there already.
func IsConflict(err error) bool {
	return problem.CodeOf(Problem(err, "")) == problem.Conflict
}

// Wait says how an error of waiting reads; used where waiting is a courtesy.
func Wait(err error, url string) string {
	if p, ok := problem.As(Problem(err, url)); ok {
		return p.What
	}
	return fmt.Sprint(err)
}
