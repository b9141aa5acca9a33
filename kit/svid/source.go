package svid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// SocketEnv names the Workload API's address, as in the SPIFFE Workload Endpoint standard.
const SocketEnv = "SPIFFE_ENDPOINT_SOCKET"

// checkEvery bounds how often the files' dates are looked at, and so how long a renewal stays unnoticed.
const checkEvery = time.Second

// Config says where the identity is. Zero values work except for Dir.
type Config struct {
	// Dir holds svid.pem, key.pem and bundle.pem.
	Dir string
	// Socket is the Workload API's address (unix:///run/agent.sock or tcp://127.0.0.1:PORT). When it is empty the
	// variable SPIFFE_ENDPOINT_SOCKET counts; when that is empty too, Dir does.
	Socket string
	Logger *slog.Logger
	Now    func() time.Time
}

// Source is the identity of this process and the authorities it believes. It is safe for concurrent use and must be
// closed.
type Source struct {
	cfg Config
	api *workloadapi.X509Source // nil when the identity is in files

	mu      sync.Mutex // guards what follows
	svid    *x509svid.SVID
	bundle  *x509bundle.Bundle
	stamp   [3]fileStamp
	checked time.Time
}

// fileStamp is what changes when a file is replaced.
type fileStamp struct {
	mod  int64
	size int64
}

// Open finds the identity. From files it fails when they are absent or do not fit together; from the Workload API it
// waits for the first SVID for as long as ctx lasts.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Socket == "" {
		cfg.Socket = os.Getenv(SocketEnv)
	}
	s := &Source{cfg: cfg}
	if cfg.Socket != "" {
		api, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(
			workloadapi.WithAddr(cfg.Socket), workloadapi.WithLogger(apiLogger{cfg.Logger})))
		if err != nil {
			return nil, fmt.Errorf("wait for an SVID from the Workload API at %s: %w", cfg.Socket, err)
		}
		s.api = api
		return s, nil
	}
	if cfg.Dir == "" {
		return nil, errors.New("an identity needs a directory or " + SocketEnv)
	}
	stamp, err := s.stamps()
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	if err := s.load(stamp); err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	return s, nil
}

// Close ends the connection to the Workload API, if there is one.
func (s *Source) Close() error {
	if s.api == nil {
		return nil
	}
	return s.api.Close()
}

// GetX509SVID is the newest SVID that could be read.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	if s.api != nil {
		return s.api.GetX509SVID()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	return s.svid, nil
}

// GetX509BundleForTrustDomain is the newest bundle of the trust domain; other domains are not believed.
func (s *Source) GetX509BundleForTrustDomain(td TrustDomain) (*x509bundle.Bundle, error) {
	if s.api != nil {
		return s.api.GetX509BundleForTrustDomain(td)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refresh()
	return s.bundle.GetX509BundleForTrustDomain(td)
}

// ID is who this process is.
func (s *Source) ID() (ID, error) {
	v, err := s.GetX509SVID()
	if err != nil {
		return ID{}, err
	}
	return v.ID, nil
}

// NotAfter is when the present SVID ends.
func (s *Source) NotAfter() (time.Time, error) {
	v, err := s.GetX509SVID()
	if err != nil {
		return time.Time{}, err
	}
	return v.Certificates[0].NotAfter, nil
}

// refresh reads the files again when they have changed. What cannot be read changes nothing: a renewal that is half
// written is found complete at the next look. mu is held.
func (s *Source) refresh() {
	now := s.cfg.Now()
	if since := now.Sub(s.checked); since >= 0 && since < checkEvery {
		return
	}
	s.checked = now
	stamp, err := s.stamps()
	if err == nil && stamp == s.stamp {
		return
	}
	if err == nil {
		err = s.load(stamp)
	}
	if err != nil {
		s.cfg.Logger.Warn("identity files not usable; the previous identity stays", "dir", s.cfg.Dir, "error", err)
	}
}

func (s *Source) stamps() (stamp [3]fileStamp, err error) {
	for i, name := range []string{svidFile, keyFile, bundleFile} {
		var info fs.FileInfo
		if info, err = os.Stat(filepath.Join(s.cfg.Dir, name)); err != nil {
			return stamp, err
		}
		stamp[i] = fileStamp{info.ModTime().UnixNano(), info.Size()}
	}
	return stamp, nil
}

func (s *Source) load(stamp [3]fileStamp) error {
	certPEM, err := os.ReadFile(filepath.Join(s.cfg.Dir, svidFile))
	if err != nil {
		return err
	}
	keysPEM, err := readPrivate(filepath.Join(s.cfg.Dir, keyFile))
	if err != nil {
		return err
	}
	bundlePEM, err := os.ReadFile(filepath.Join(s.cfg.Dir, bundleFile))
	if err != nil {
		return err
	}
	v, err := parseIdentity(certPEM, keysPEM)
	if err != nil {
		return err
	}
	bundle, err := x509bundle.Parse(v.ID.TrustDomain(), bundlePEM)
	if err != nil {
		return err
	}
	if bundle.Empty() {
		return fmt.Errorf("%s holds no authority", bundleFile)
	}
	if _, _, err := x509svid.Verify(v.Certificates, bundle, x509svid.WithTime(v.Certificates[0].NotAfter)); err != nil {
		return fmt.Errorf("the SVID is not of an authority in %s: %w", bundleFile, err)
	}
	s.svid, s.bundle, s.stamp = v, bundle, stamp
	return nil
}

// parseIdentity joins an SVID with its key out of several.
func parseIdentity(certPEM, keysPEM []byte) (*x509svid.SVID, error) {
	leaf, err := firstCert(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := matchingKey(keysPEM, leaf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return x509svid.Parse(bytes.Clone(certPEM), keyPEM)
}

// apiLogger passes the Workload API client's lines on.
type apiLogger struct{ log *slog.Logger }

func (l apiLogger) Debugf(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l apiLogger) Infof(format string, args ...any)  { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l apiLogger) Warnf(format string, args ...any)  { l.log.Warn(fmt.Sprintf(format, args...)) }
func (l apiLogger) Errorf(format string, args ...any) { l.log.Warn(fmt.Sprintf(format, args...)) }
