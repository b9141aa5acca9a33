package authn

import (
	"net/http"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/kit/jose"
)

func TestOneBearerTokenIsFound(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		headers []string
		query   string
		token   string
		want    Reason
	}{
		"one":                {headers: []string{"Bearer abc.def-_~+/=="}, token: "abc.def-_~+/==", want: "accepted"},
		"other case":         {headers: []string{"bEaReR abc"}, token: "abc", want: "accepted"},
		"two spaces":         {headers: []string{"Bearer  abc"}, token: "abc", want: "accepted"},
		"harmless query":     {headers: []string{"Bearer abc"}, query: "token=1&x_access_token=2", token: "abc", want: "accepted"},
		"none":               {want: TokenMissing},
		"empty":              {headers: []string{""}, want: TokenMalformed},
		"scheme alone":       {headers: []string{"Bearer"}, want: TokenMalformed},
		"no token":           {headers: []string{"Bearer "}, want: TokenMalformed},
		"padding alone":      {headers: []string{"Bearer =="}, want: TokenMalformed},
		"Basic":              {headers: []string{"Basic YTpi"}, want: TokenMalformed},
		"glued":              {headers: []string{"Bearerabc"}, want: TokenMalformed},
		"tab":                {headers: []string{"Bearer\tabc"}, want: TokenMalformed},
		"two headers":        {headers: []string{"Bearer abc", "Bearer abc"}, want: TokenMalformed},
		"two in one":         {headers: []string{"Bearer abc, Bearer def"}, want: TokenMalformed},
		"bearer twice":       {headers: []string{"Bearer Bearer abc"}, want: TokenMalformed},
		"trailing space":     {headers: []string{"Bearer abc "}, want: TokenMalformed},
		"not ASCII":          {headers: []string{"Bearer abc\u00e9"}, want: TokenMalformed},
		"too large":          {headers: []string{"Bearer " + strings.Repeat("a", jose.MaxSize+1)}, want: TokenTooLarge},
		"query":              {query: "access_token=abc", want: TokenInQuery},
		"query and header":   {headers: []string{"Bearer abc"}, query: "a=b&access_token=abc", want: TokenInQuery},
		"query, escaped":     {query: "%61ccess_token=abc", want: TokenInQuery},
		"query, other case":  {query: "Access_Token=abc", want: TokenInQuery},
		"query, semicolon":   {query: "a=b;access_token=abc", want: TokenInQuery},
		"query, broken pair": {query: "a=%zz&access_token=abc", want: TokenInQuery},
		"query, no value":    {query: "access_token", want: TokenInQuery},
	} {
		h := http.Header{}
		for _, v := range c.headers {
			h.Add("Authorization", v)
		}
		got, err := FromHeader(h, c.query)
		if reason := reasonIn(t, err); reason != c.want || got != c.token {
			t.Errorf("%s: got %q, %s; want %s", name, got, reason, c.want)
		}
	}
}

func FuzzFromHeader(f *testing.F) {
	f.Add("Bearer abc", "")
	f.Add("Bearer a b", "access_token=x")
	f.Add("", "%%%;&&==")
	f.Fuzz(func(t *testing.T, header, query string) {
		token, err := FromHeader(http.Header{"Authorization": {header}}, query)
		if err == nil && (token == "" || strings.ContainsAny(token, " ,\t\r\n\"") || len(token) > jose.MaxSize) {
			t.Fatalf("took %q from %q", token, header)
		}
	})
}
