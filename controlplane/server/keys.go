package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/mcpvault/mcpvault/controlplane/keyring"
	"github.com/mcpvault/mcpvault/kit/jose"
	snapshotv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/snapshot/v1"
)

// tokenName is the file of the key that signs access tokens; it lies beside those of the snapshots.
const tokenName = "token"

// tokenKey signs access tokens.
type tokenKey struct {
	signer *jose.Signer
	// issuer is the key as cells get it.
	issuer *snapshotv1.IssuerKey
}

func openToken(dir string) (*tokenKey, error) {
	s, err := keyring.OpenKey(dir, tokenName, false)
	if err != nil {
		return nil, err
	}
	k := &tokenKey{}
	if k.signer, err = jose.NewSigner(s.Private(), s.KeyID()); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil {
		return nil, fmt.Errorf("encode the token key: %w", err)
	}
	k.issuer = &snapshotv1.IssuerKey{Kid: s.KeyID(), Alg: jose.EdDSA, PublicKey: der}
	return k, nil
}

// watchKeys looks at the keys again every few seconds, and at once on SIGHUP.
func (s *server) watchKeys(ctx context.Context) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	return s.keys.Run(ctx, again)
}

// writeWhole replaces a file in one step: nobody reads half of it.
func writeWhole(path string, data []byte, mode os.FileMode) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
