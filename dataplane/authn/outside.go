package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// userName is what an outside issuer may call somebody. A workload's SPIFFE ID is none: that is proved by a certificate.
var userName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$`)

// outside judges what only tokens of other issuers have to say: by which name policy knows their subject. What they say of
// its type does not count. The error is an *Error.
func (c *claims) outside(raw json.RawMessage, u *UserClaim) error {
	c.Type = TypeUser
	value := c.Subject
	if u.Claim != "" && u.Claim != "sub" {
		var all map[string]jsontext.Value
		if err := jsonv2.Unmarshal(raw, &all); err != nil {
			return refuse(TokenMalformed, err)
		}
		value = ""
		if err := jsonv2.Unmarshal(all[u.Claim], &value); err != nil {
			return refuse(TokenUser, fmt.Errorf("the claim %s is no text", u.Claim))
		}
		if proved, said := all["email_verified"]; u.Claim == "email" && said && string(proved) != "true" {
			return refuse(TokenUser, errors.New("the issuer has not verified the address"))
		}
	}
	if u.Domain != "" {
		at := len(value) - len(u.Domain) - 1
		if at < 1 || value[at] != '@' || !strings.EqualFold(value[at+1:], u.Domain) {
			return refuse(TokenUser, fmt.Errorf("the name does not end in @%s", u.Domain))
		}
		value = value[:at]
	}
	c.Name = u.Prefix + value
	if !userName.MatchString(c.Name) {
		return refuse(TokenUser, errors.New("the name is none that a user can have"))
	}
	return nil
}

// scopes are a list, or one text with spaces between them.
type scopes []string

// UnmarshalJSON takes both forms.
func (s *scopes) UnmarshalJSON(b []byte) error {
	if jsontext.Value(b).Kind() == '"' {
		var text string
		err := jsonv2.Unmarshal(b, &text)
		*s = strings.Fields(text)
		return err
	}
	return jsonv2.Unmarshal(b, (*[]string)(s))
}
