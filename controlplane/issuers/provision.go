package issuers

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/controlplane/store"
	"github.com/mcpvault/mcpvault/kit/jose"
	"github.com/mcpvault/mcpvault/kit/problem"
	adminv1 "github.com/mcpvault/mcpvault/proto/gen/mcpvault/admin/v1"
)

const (
	// leeway is how far the clocks of an issuer and of this process may differ.
	leeway = 60 * time.Second
	// maxGroups bounds the values of the groups claim.
	maxGroups = 4096
)

// userName is what an issuer may call somebody; cells hold its tokens to the same.
var userName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,127}$`)

// ProvisionUser brings the user whom a token names, and their memberships, up to what it says. Only the targets of the
// issuer's mappings are touched, and all in one transaction.
//
// The token's audience is not looked at: nothing is let in by it, and its issuer vouches for the claims to whomever it was
// meant for.
func (s *Service) ProvisionUser(ctx context.Context, req *adminv1.ProvisionUserRequest) (*adminv1.ProvisionUserResponse, error) {
	c := controlplane.CallerFrom(ctx)
	list, err := s.list(ctx, c.TenantID)
	if err != nil {
		return nil, err
	}
	i, claims, err := s.open(req.GetToken(), list)
	if err != nil {
		return nil, err
	}
	name, err := userOf(i, claims)
	if err != nil {
		return nil, err
	}
	values, err := groupsOf(i, claims)
	if err != nil {
		return nil, err
	}
	res := &adminv1.ProvisionUserResponse{}
	res.Revision, err = s.store.Write(ctx, c.TenantID, c.Actor(), func(tx *store.Tx) error {
		res.User, res.Created, res.Added, res.Removed = name, false, nil, nil
		if err := s.provision(ctx, tx, i, values, res); err != nil {
			return err
		}
		if !res.GetCreated() && len(res.GetAdded())+len(res.GetRemoved()) == 0 {
			return store.ErrNoChange
		}
		return tx.Change(ctx, "issuer.provision", "user:"+name, map[string]any{
			"issuer": i.GetName(), "created": res.GetCreated(), "added": res.GetAdded(), "removed": res.GetRemoved(),
		})
	})
	if err != nil {
		return nil, err
	}
	return res, nil
}

func (s *Service) provision(ctx context.Context, tx *store.Tx, i *adminv1.Issuer, values []string, res *adminv1.ProvisionUserResponse) error {
	u, err := tx.UserByName(ctx, res.GetUser())
	switch {
	case errors.Is(err, store.ErrNotFound) && i.GetCreateUsers():
		if u, err = tx.InsertUser(ctx, controlplane.User{Name: res.GetUser(), Kind: controlplane.Person}); err != nil {
			return err
		}
		res.Created = true
	case err != nil:
		return err
	}
	if u.Kind != controlplane.Person {
		return problem.Newf(problem.Denied, "give the person another name, with --user-prefix", "%s is no person", u.Name)
	}
	want := map[string]bool{}
	for _, m := range i.GetMappings() {
		want[m.GetTarget()] = want[m.GetTarget()] || slices.Contains(values, m.GetValue())
	}
	have, err := memberOf(ctx, tx, u.Name)
	if err != nil {
		return err
	}
	for target, member := range want {
		if have[target] == member {
			continue
		}
		if err := setMember(ctx, tx, target, u.Name, !member); err != nil {
			return err
		}
		if member {
			res.Added = append(res.Added, target)
		} else {
			res.Removed = append(res.Removed, target)
		}
	}
	slices.Sort(res.Added)
	slices.Sort(res.Removed)
	return nil
}

// memberOf is what a user is a member of directly, as "group:eng".
func memberOf(ctx context.Context, tx *store.Tx, user string) (map[string]bool, error) {
	rows, err := tx.PolicyRows(ctx)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, u := range rows.Users {
		if u.Name != user {
			continue
		}
		for kind, names := range map[string][]string{"group:": u.Groups, "team:": u.Teams, "role:": u.Roles} {
			for _, n := range names {
				have[kind+n] = true
			}
		}
	}
	return have, nil
}

func setMember(ctx context.Context, tx *store.Tx, target, user string, remove bool) error {
	kind, name, _ := strings.Cut(target, ":")
	switch kind {
	case "group":
		g, err := tx.Group(ctx, name)
		if err != nil {
			return err
		}
		if g.Source != controlplane.GroupManual {
			return problem.Newf(problem.Conflict, "map to another group", "group %s is kept by %s", name, g.Source)
		}
		return tx.SetGroupMember(ctx, name, user, remove)
	case "team":
		return tx.SetTeamMember(ctx, name, user, remove)
	}
	return tx.SetRoleMember(ctx, name, store.MemberUser, user, remove)
}

// claims are those of a token, each as it came.
type claims map[string]json.RawMessage

func (c claims) text(name string) (string, bool) {
	var s *string
	err := json.Unmarshal(c[name], &s)
	if err != nil || s == nil {
		return "", false
	}
	return *s, true
}

// refused is the one answer for a token that is not taken.
func refused(why string) *problem.Problem {
	return problem.New(problem.Invalid, "the token is not accepted: "+why, "get a new one of an issuer in `mcpvault issuer list`")
}

// open verifies a token with the keys of the issuer that it names.
func (s *Service) open(token string, list []*adminv1.Issuer) (*adminv1.Issuer, claims, error) {
	u, err := jose.ParseAny(token)
	if err != nil {
		return nil, nil, refused("it is no signed token").Because(err)
	}
	var says claims
	if err := json.Unmarshal(u.UnverifiedClaims(), &says); err != nil {
		return nil, nil, refused("its claims are no object")
	}
	iss, _ := says.text("iss")
	at := slices.IndexFunc(list, func(i *adminv1.Issuer) bool { return i.GetUrl() == iss })
	if at < 0 {
		return nil, nil, refused("its issuer is none of this tenant")
	}
	var keys []jose.Key
	for _, k := range list[at].GetKeys() {
		if pub, err := x509.ParsePKIXPublicKey(k.GetPublicKey()); err == nil && k.GetWithdrawnMs() == 0 {
			keys = append(keys, jose.Key{KID: k.GetKid(), Alg: k.GetAlg(), Public: pub})
		}
	}
	raw, err := u.Verify(keys)
	if err != nil {
		return nil, nil, refused("its signature is by no key of its issuer").Because(err)
	}
	var c claims
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, nil, err
	}
	return list[at], c, s.holds(c)
}

func (s *Service) holds(c claims) error {
	moment := func(name string) (time.Time, bool) {
		var seconds *float64
		if json.Unmarshal(c[name], &seconds) != nil || seconds == nil || *seconds < 0 || *seconds > 253402300799 {
			return time.Time{}, false
		}
		return time.Unix(int64(*seconds), 0), true
	}
	if end, ok := moment("exp"); !ok || !s.now().Before(end.Add(leeway)) {
		return refused("it has expired, or does not say when it does")
	}
	for _, name := range []string{"nbf", "iat"} {
		if begin, ok := moment(name); c[name] != nil && (!ok || s.now().Before(begin.Add(-leeway))) {
			return refused("it does not hold yet")
		}
	}
	return nil
}

// userOf is the user whom claims name, by the issuer's rule: what a cell makes of the same claims.
func userOf(i *adminv1.Issuer, c claims) (string, error) {
	claim := i.GetUserClaim()
	if claim == "" {
		claim = "sub"
	}
	value, ok := c.text(claim)
	if proved, said := c["email_verified"]; !ok || claim == "email" && said && string(proved) != "true" {
		return "", refused("its claim " + claim + " names nobody")
	}
	if domain := i.GetUserDomain(); domain != "" {
		at := len(value) - len(domain) - 1
		if at < 1 || value[at] != '@' || !strings.EqualFold(value[at+1:], domain) {
			return "", refused("the name does not end in @" + domain)
		}
		value = value[:at]
	}
	name := i.GetUserPrefix() + value
	if !userName.MatchString(name) {
		return "", refused("the name is none that a user can have")
	}
	return name, nil
}

// groupsOf are the values of the groups claim: a text or a list of them. A token without the claim is in no group; one
// whose claim cannot be read is refused, for it might be in fewer.
func groupsOf(i *adminv1.Issuer, c claims) ([]string, error) {
	raw, there := c[i.GetGroupsClaim()]
	if i.GetGroupsClaim() == "" || !there {
		return nil, nil
	}
	if one, ok := c.text(i.GetGroupsClaim()); ok {
		return []string{one}, nil
	}
	var list []string
	if json.Unmarshal(raw, &list) != nil || len(list) > maxGroups {
		return nil, refused("its claim " + i.GetGroupsClaim() + " is no list of texts")
	}
	return list, nil
}
