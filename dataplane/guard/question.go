package guard

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"github.com/mcpvault/mcpvault/dataplane/mcp"
)

// Why a question does not go to the client.
const (
	// Forbidden: policy lets no server ask such a thing.
	Forbidden = "question_forbidden"
	// Sensitive: it asks for something that only its owner and its issuer may know.
	Sensitive = "question_sensitive"
	// Origin: it leads to an origin that is neither the server's own nor one that policy names.
	Origin = "question_origin"
	// HiddenText: it holds characters that its reader would not see, and policy blocks those.
	HiddenText = "question_hidden_text"
	// Unclear: it cannot be read as what it says it is.
	Unclear = "question_unclear"
)

// maxQuestion bounds the bytes of a question that is judged.
const maxQuestion = 256 << 10

// Question judges what a server asks the client of a caller: "" when it may be asked, or else why not. params is the raw
// JSON object, nil for none; server is the URL of the server that asks.
func (r *Rules) Question(method string, params []byte, server string) string {
	switch {
	case method == mcp.MethodElicit && r.noElicit, method == mcp.MethodSample && r.noSample, method == mcp.MethodRoots && r.noRoots:
		return Forbidden
	case r.Results == Block && Suspect(params):
		if _, found := Clean(params); found.Any() {
			return HiddenText
		}
	}
	if method != mcp.MethodElicit || r.RiskyQuestions {
		return ""
	}
	if len(params) > maxQuestion {
		return Unclear
	}
	return r.elicitation(params, server)
}

// elicitation looks at every member, however often and in whatever case it is there: whichever of them a client reads has
// been judged.
func (r *Rules) elicitation(params []byte, server string) string {
	mode, addressed, sensitive := "", false, false
	for key, raw := range mcp.RawMembers(params) {
		text, isText := textOf(raw)
		switch strings.ToLower(key) {
		case "mode":
			if !isText || mode != "" && mode != text {
				return Unclear
			}
			mode = text
		case "url":
			if !isText {
				return Unclear
			}
			if why := r.leads(text, server); why != "" {
				return why
			}
			addressed = true
		case "message":
			sensitive = sensitive || secretive(text)
		case "requestedschema":
			sensitive = sensitive || asksForSecret(raw)
		}
	}
	switch {
	case mode == "url" && addressed:
		return ""
	case mode != "" && mode != "form":
		return Unclear
	case sensitive:
		return Sensitive
	}
	return ""
}

func textOf(raw []byte) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

// URL judges a URL that a server leads a client to: "" when it may.
func (r *Rules) URL(raw, server string) string {
	if r.RiskyQuestions {
		return ""
	}
	return r.leads(raw, server)
}

func (r *Rules) leads(raw, server string) string {
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" {
		return Origin
	}
	to := originOf(u)
	own, err := url.Parse(strings.TrimPrefix(server, "sse+"))
	if to == "" || (err != nil || originOf(own) != to) && !slices.Contains(r.origins, to) {
		return Origin
	}
	return ""
}

// asksForSecret looks at what a form calls its fields, at every depth.
func asksForSecret(schema []byte) bool {
	if len(schema) == 0 {
		return false
	}
	switch schema[0] {
	case '{':
		for key, raw := range mcp.RawMembers(schema) {
			text, isText := textOf(raw)
			switch {
			case secretive(key):
				return true
			case isText && (key == "title" || key == "description" || strings.EqualFold(key, "format")):
				if secretive(text) {
					return true
				}
			case !isText && asksForSecret(raw):
				return true
			}
		}
	case '[':
		var list []json.RawMessage
		if json.Unmarshal(schema, &list) != nil {
			return true // what cannot be read is not shown to a person
		}
		return slices.ContainsFunc(list, func(raw json.RawMessage) bool { return asksForSecret(raw) })
	}
	return false
}

// secretive reports whether a text speaks of credentials, one-time codes or payment cards. It errs on the side of not
// asking: whoever runs a server that has to ask can let it (settings, risky-questions).
func secretive(text string) bool {
	words := wordsOf(text)
	for i, w := range words {
		two, three := "", ""
		if i+1 < len(words) {
			two = w + " " + words[i+1]
		}
		if i+2 < len(words) {
			three = two + " " + words[i+2]
		}
		if slices.Contains(secretWords(), w) || slices.Contains(secretWords(), strings.TrimRight(w, "0123456789")) || slices.Contains(secretPhrases(), two) || slices.Contains(secretPhrases(), three) {
			return true
		}
	}
	return false
}

func secretWords() []string {
	return []string{
		"password", "passwords", "passwd", "pwd", "passphrase", "passcode", "passcodes", "pin", "otp", "totp", "hotp", "2fa", "mfa", "cvv", "cvc",
		"cvv2", "cvc2", "cardnumber", "creditcard", "apikey", "secret", "credentials", "privatekey", "mnemonic", "ssn", "accesstoken",
	}
}

func secretPhrases() []string {
	return []string{
		"pass word", "pass phrase", "pass code", "one time code", "one time password", "verification code", "security code", "authentication code",
		"login code", "sms code", "recovery code", "backup code", "card number", "credit card", "debit card", "api key", "access token",
		"refresh token", "bearer token", "private key", "secret key", "seed phrase", "recovery phrase", "social security", "two factor", "auth code",
	}
}

// wordsOf cuts a text, or a name in any of the usual spellings, into words in lower case: "oneTimeCode", "one-time_code".
func wordsOf(text string) []string {
	var words []string
	var word []rune
	end := func() {
		if len(word) > 0 {
			words = append(words, strings.ToLower(string(word)))
			word = nil
		}
	}
	lower := false
	for _, r := range text {
		switch {
		case kindOf(r) != visible:
			continue // a word is not another one for what nobody sees in it
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			if unicode.IsUpper(r) && lower {
				end()
			}
			word = append(word, r)
			lower = unicode.IsLower(r)
		default:
			end()
			lower = false
		}
	}
	end()
	return words
}
