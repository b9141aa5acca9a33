package svid

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The files of an identity directory.
const (
	svidFile   = "svid.pem"
	keyFile    = "key.pem"
	bundleFile = "bundle.pem"

	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"

	maxPEM = 1 << 20
)

// WriteIdentity puts an SVID, its key and the trust bundle into dir, each replaced atomically, keys with mode 0600. A
// crash between the files leaves a directory that still opens: the old key stays in key.pem until the new SVID is there.
func WriteIdentity(dir string, svidPEM, keyPEM, bundlePEM []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create identity directory: %w", err)
	}
	if err := writeFile(dir, bundleFile, bundlePEM); err != nil {
		return err
	}
	old, err := readPrivate(filepath.Join(dir, keyFile))
	if err == nil && !bytes.Equal(old, keyPEM) {
		both := append(append(bytes.Clone(keyPEM), '\n'), old...)
		if err := writeFile(dir, keyFile, both); err != nil {
			return err
		}
		if err := writeFile(dir, svidFile, svidPEM); err != nil {
			return err
		}
		return writeFile(dir, keyFile, keyPEM)
	}
	if err := writeFile(dir, keyFile, keyPEM); err != nil {
		return err
	}
	return writeFile(dir, svidFile, svidPEM)
}

// writeFile replaces dir/name in one step and makes it durable.
func writeFile(dir, name string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", filepath.Join(dir, name), err)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// readPrivate reads a key file and refuses one that others may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o); chmod it to 0600", path, info.Mode().Perm())
	}
	if info.Size() > maxPEM {
		return nil, fmt.Errorf("%s is over %d bytes", path, maxPEM)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, err
	}
	return data, nil
}

// matchingKey finds the private key of a certificate among those in a PEM file.
func matchingKey(keysPEM []byte, cert *x509.Certificate) (*ecdsa.PrivateKey, error) {
	for {
		var block *pem.Block
		if block, keysPEM = pem.Decode(keysPEM); block == nil {
			return nil, errors.New("no P-256 key that belongs to the certificate")
		}
		if block.Type != pemKey {
			continue
		}
		parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			continue
		}
		if key, ok := parsed.(*ecdsa.PrivateKey); ok && key.PublicKey.Equal(cert.PublicKey) {
			return key, nil
		}
	}
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// parseCerts reads at least one certificate, and nothing else, from PEM.
func parseCerts(certPEM []byte) ([]*x509.Certificate, error) {
	if len(certPEM) > maxPEM {
		return nil, fmt.Errorf("over %d bytes", maxPEM)
	}
	var all []*x509.Certificate
	for {
		var block *pem.Block
		if block, certPEM = pem.Decode(certPEM); block == nil {
			break
		}
		if block.Type != pemCert {
			return nil, fmt.Errorf("holds a %.40q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate: %w", err)
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return all, nil
}

func firstCert(certPEM []byte) (*x509.Certificate, error) {
	if len(certPEM) > maxPEM {
		return nil, fmt.Errorf("%s is over %d bytes", svidFile, maxPEM)
	}
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != pemCert {
		return nil, fmt.Errorf("%s holds no certificate", svidFile)
	}
	return x509.ParseCertificate(block.Bytes)
}

// WorkloadsFile holds, in a node's identity directory, the authorities of the workloads that may call it.
const WorkloadsFile = "workloads.pem"

// WriteWorkloads replaces the authorities of workloads in an identity directory.
func WriteWorkloads(dir string, bundlePEM []byte) error {
	if _, err := parseCerts(bundlePEM); err != nil {
		return fmt.Errorf("authorities of workloads: %w", err)
	}
	if old, err := os.ReadFile(filepath.Join(dir, WorkloadsFile)); err == nil && bytes.Equal(old, bundlePEM) {
		return nil
	}
	return writeFile(dir, WorkloadsFile, bundlePEM)
}

// OpenKey reads the key in an identity directory that has no SVID yet, and makes it, mode 0600, when there is none: a machine
// that asks for its SVID again asks with the same key.
func OpenKey(dir string) (keyPEM []byte, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create identity directory: %w", err)
	}
	keyPEM, err = readPrivate(filepath.Join(dir, keyFile))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return keyPEM, err
	}
	if keyPEM, err = NewKey(); err != nil {
		return nil, err
	}
	return keyPEM, writeFile(dir, keyFile, keyPEM)
}
