package jointoken_test

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mcpvault/mcpvault/kit/jointoken"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func token() jointoken.Token {
	return jointoken.Token{
		Secret: jointoken.NewSecret(), ControlPlane: "https://cp.example:8404", TrustDomain: "mcpvault.example", Cell: "eu", Node: "n2",
		Authorities: [][32]byte{{1}, {2}}, Roots: [32]byte{3}, Expires: time.Unix(1_800_000_000, 0).UTC(),
	}
}

func TestATokenSaysWhatItWasMadeOf(t *testing.T) {
	t.Parallel()
	want := token()
	text, err := want.Text()
	if err != nil {
		t.Fatal(err)
	}
	got, err := jointoken.Parse("  " + text + "\n")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", got, got, got), string(got.Secret.Reveal())) {
		t.Fatal("printing a token shows its secret")
	}
}

func TestATokenThatIsNotWholeIsRefused(t *testing.T) {
	t.Parallel()
	text, err := token().Text()
	if err != nil {
		t.Fatal(err)
	}
	encode := func(s string) string { return "mcpvault-join-1." + base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for name, s := range map[string]string{
		"nothing":       "",
		"another thing": "eyJhbGciOiJFZERTQSJ9.e30.x",
		"cut off":       text[:len(text)-5],
		"too long":      text + strings.Repeat("A", 5000),
		"no JSON":       encode("hello"),
		"other keys":    encode(`{"x":1}`),
		"empty":         encode(`{}`),
		"two":           encode(`{}{}`),
	} {
		if _, err := jointoken.Parse(s); problem.CodeOf(err) != problem.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*jointoken.Token){
		"plain HTTP":           func(t *jointoken.Token) { t.ControlPlane = "http://cp.example:8404" },
		"no address":           func(t *jointoken.Token) { t.ControlPlane = "" },
		"an address with more": func(t *jointoken.Token) { t.ControlPlane = "https://u:p@cp.example/x" },
		"no node":              func(t *jointoken.Token) { t.Node = "" },
		"a path for a node":    func(t *jointoken.Token) { t.Node = "../n1" },
		"no cell":              func(t *jointoken.Token) { t.Cell = "" },
		"no authority":         func(t *jointoken.Token) { t.Authorities = nil },
		"many authorities":     func(t *jointoken.Token) { t.Authorities = make([][32]byte, 9) },
	} {
		c := token()
		change(&c)
		if _, err := c.Text(); err == nil {
			t.Errorf("a token with %s is made", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	text, err := token().Text()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add("mcpvault-join-1.e30")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := jointoken.Parse(s)
		if err != nil {
			return
		}
		again, err := got.Text()
		if err != nil {
			t.Fatal(err)
		}
		if twice, err := jointoken.Parse(again); err != nil || !reflect.DeepEqual(got, twice) {
			t.Fatalf("%+v is read back as %+v: %v", got, twice, err)
		}
	})
}
