package report

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The files of a report.
const (
	JSONFile      = "report.json"
	MarkdownFile  = "report.md"
	JUnitFile     = "report.junit.xml"
	SignatureFile = "report.sig.json"
)

// Bounds of what is read.
const (
	maxReport    = 64 << 20
	maxSignature = 64 << 10
	maxKey       = 16 << 10
)

// signature is what SignatureFile holds. What is signed is text(), with Ed25519 (RFC 8032).
type signature struct {
	// Key is the public key, base64.
	Key    string    `json:"key"`
	Signed time.Time `json:"signed"`
	// Files are the SHA-256 of the files, hex, by their names.
	Files     map[string]string `json:"files"`
	Signature string            `json:"signature"`
}

func (s *signature) text() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "mcpvault drill report, form 1\n%s\n", s.Signed.UTC().Format(time.RFC3339))
	for _, name := range slices.Sorted(maps.Keys(s.Files)) {
		fmt.Fprintf(&b, "%s  %s\n", s.Files[name], name)
	}
	return []byte(b.String())
}

// Errors of Verify.
var (
	// ErrUnsigned means that there is no signature to be read beside the file.
	ErrUnsigned = errors.New("there is no signature beside it")
	// ErrAltered means that the file is not what was signed.
	ErrAltered = errors.New("it is not what was signed")
	// ErrUnknownKey means that it was signed with another key than is believed.
	ErrUnknownKey = errors.New("it was signed with a key that is not known here")
)

// Key reads the private key in a file, PKCS 8 in PEM, and makes one when there is no file. Others than the owner must not be able to
// read it.
func Key(path string) (ed25519.PrivateKey, error) {
	key, err := readKey(path)
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	_, key, err = ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("write a key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return readKey(path) // Somebody else has just made it.
	}
	if err != nil {
		return nil, err
	}
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return key, errors.Join(err, f.Sync(), f.Close())
}

func readKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others than its owner: chmod 600 it, or remove it for a new one", path)
	}
	raw, err := read(path, maxKey)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no Ed25519 key", path)
	}
	return key, nil
}

// PublicKey is a public key as Verify is given it and as signatures show it.
func PublicKey(key ed25519.PrivateKey) string {
	public, _ := key.Public().(ed25519.PublicKey)
	return base64.StdEncoding.EncodeToString(public)
}

// Write leaves the report in a directory, which it makes: three forms of it, and their signature.
func (r *Run) Write(dir string, key ed25519.PrivateKey) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	junit, err := r.JUnit()
	if err != nil {
		return err
	}
	files := map[string][]byte{JSONFile: append(raw, '\n'), MarkdownFile: r.Markdown(), JUnitFile: junit}
	s := signature{Key: PublicKey(key), Signed: time.Now().UTC().Truncate(time.Second), Files: map[string]string{}}
	for name, b := range files {
		s.Files[name] = digest(b)
	}
	s.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(key, s.text()))
	if files[SignatureFile], err = json.MarshalIndent(s, "", "  "); err != nil {
		return fmt.Errorf("write the signature: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

func digest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// Verify checks that a file of a report is what was signed, with one of the keys (as PublicKey gives them), and returns when and with
// which. A failure is ErrUnsigned, ErrAltered or ErrUnknownKey.
func Verify(file string, keys ...string) (signed time.Time, key string, err error) {
	raw, err := read(filepath.Join(filepath.Dir(file), SignatureFile), maxSignature)
	if err != nil {
		return signed, "", errors.Join(ErrUnsigned, err)
	}
	s, err := parse(raw)
	if err != nil {
		return signed, "", err
	}
	content, err := read(file, maxReport)
	if err != nil {
		return signed, "", err
	}
	if want, ok := s.Files[filepath.Base(file)]; !ok || want != digest(content) {
		return signed, s.Key, ErrAltered
	}
	if !slices.Contains(keys, s.Key) {
		return s.Signed, s.Key, ErrUnknownKey
	}
	return s.Signed, s.Key, nil
}

// parse reads a signature and checks it against the key that it names itself.
func parse(raw []byte) (*signature, error) {
	var s signature
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, errors.Join(ErrUnsigned, err)
	}
	key, err := base64.StdEncoding.Strict().DecodeString(s.Key)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: its key is none", ErrAltered)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(s.Signature)
	if err != nil || !ed25519.Verify(key, s.text(), sig) {
		return nil, fmt.Errorf("%w: the signature is not good", ErrAltered)
	}
	return &s, nil
}

// Read reads a run's JSON.
func Read(file string) (*Run, error) {
	raw, err := read(file, maxReport)
	if err != nil {
		return nil, err
	}
	r := &Run{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, fmt.Errorf("%s is no report: %w", file, err)
	}
	if r.Form != Form {
		return nil, fmt.Errorf("%s has form %d, this program reads form %d", file, r.Form, Form)
	}
	return r, nil
}

// read reads a file that must not be larger than the limit.
func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return raw, err
}
