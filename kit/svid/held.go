package svid

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"time"
)

// renewAfter is the part of an SVID's life after which another one is asked for: a day of seven.
const renewAfter = 7

// Holding is the SVID in an identity directory.
type Holding struct {
	ID                  ID
	NotBefore, NotAfter time.Time
	// Authority is AuthorityOf it.
	Authority []byte
}

// Held reads the SVID in an identity directory; false when there is none that opens.
func Held(dir string) (Holding, bool) {
	chain, err := os.ReadFile(filepath.Join(dir, svidFile))
	if err != nil {
		return Holding{}, false
	}
	bundle, err := os.ReadFile(filepath.Join(dir, bundleFile))
	if err != nil {
		return Holding{}, false
	}
	keys, err := readPrivate(filepath.Join(dir, keyFile))
	if err != nil {
		return Holding{}, false
	}
	v, err := parseIdentity(chain, keys)
	if err != nil {
		return Holding{}, false
	}
	h := Holding{ID: v.ID, Authority: AuthorityOf(chain, bundle)}
	h.NotBefore, h.NotAfter = life(v.Certificates[0])
	return h, true
}

// life is from when to when a certificate was meant to be good.
func life(c *x509.Certificate) (from, until time.Time) { return c.NotBefore.Add(backdate), c.NotAfter }

// RenewAt is when the SVID should be replaced.
func (h Holding) RenewAt() time.Time {
	return h.NotBefore.Add(h.NotAfter.Sub(h.NotBefore) / renewAfter)
}

// HalfLife is when one that was not renewed is worth a warning.
func (h Holding) HalfLife() time.Time { return h.NotBefore.Add(h.NotAfter.Sub(h.NotBefore) / 2) }

// Fresh reports whether it need not be replaced yet.
func (h Holding) Fresh(now time.Time) bool {
	return !now.Before(h.NotBefore) && now.Before(h.RenewAt())
}
