package report

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"testing"
	"time"
)

// FuzzSignature reads anybody's signature file: what is taken for signed was signed with the key that it names.
func FuzzSignature(f *testing.F) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		f.Fatal(err)
	}
	s := signature{Key: PublicKey(key), Signed: time.Unix(1, 0), Files: map[string]string{JSONFile: digest(nil)}}
	s.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(key, s.text()))
	good, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"key":"","files":{"report.json":""},"signature":""}`))
	f.Add([]byte(`{"key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","signature":"AAAA"}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := parse(raw)
		if err != nil {
			return
		}
		public, _ := base64.StdEncoding.DecodeString(got.Key)
		sig, _ := base64.StdEncoding.DecodeString(got.Signature)
		if !ed25519.Verify(public, got.text(), sig) {
			t.Errorf("%s is taken for signed", raw)
		}
		if got.Key == s.Key && got.Files[JSONFile] != s.Files[JSONFile] {
			t.Errorf("%s is taken for signed with our key", raw)
		}
	})
}
