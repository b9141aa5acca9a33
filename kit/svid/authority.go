package svid

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
)

// Authority is a CA in a directory that is read again when its files have changed, so that it can be replaced while its
// owner runs. It is safe for concurrent use.
type Authority struct {
	dir, domain string
	log         *slog.Logger

	mu    sync.Mutex // guards what follows
	ca    *CA
	stamp [3]fileStamp
}

// OpenAuthority loads the CA of the trust domain in dir. The error wraps fs.ErrNotExist when there is none.
func OpenAuthority(dir, trustDomain string, log *slog.Logger) (*Authority, error) {
	a := &Authority{dir: dir, domain: trustDomain, log: log}
	if err := a.load(a.stamps()); err != nil {
		return nil, err
	}
	return a, nil
}

// CA is the newest that could be read whole. One that is half replaced, or of another trust domain, changes nothing.
func (a *Authority) CA() *CA {
	a.mu.Lock()
	defer a.mu.Unlock()
	if stamp := a.stamps(); stamp != a.stamp {
		if err := a.load(stamp); err != nil {
			a.log.Warn("the CA's files are not usable; the previous CA signs", "dir", a.dir, "error", err)
		}
	}
	return a.ca
}

// load reads the files. mu is held, or nobody else has a yet.
func (a *Authority) load(stamp [3]fileStamp) error {
	ca, err := LoadCA(a.dir)
	if err == nil && ca.TrustDomain() != a.domain {
		err = otherDomain(a.dir, ca, a.domain)
	}
	if err != nil {
		return err
	}
	a.ca, a.stamp = ca, stamp
	return nil
}

func (a *Authority) stamps() (stamp [3]fileStamp) {
	for i, name := range []string{caCertFile, caKeyFile, bundleFile} {
		var info fs.FileInfo
		var err error
		if info, err = os.Stat(filepath.Join(a.dir, name)); err == nil {
			stamp[i] = fileStamp{info.ModTime().UnixNano(), info.Size()}
		}
	}
	return stamp
}
