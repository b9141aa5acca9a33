package controlplane

import (
	"cmp"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // zones are known wherever the program runs

	"github.com/mcpvault/mcpvault/kit/problem"
)

// MaxLimitWords bounds how many networks, and how many regions, one grant can name.
const MaxLimitWords = 32

// Limits are circumstances that must all hold for a grant to count, for people who do not write Cedar. The zero value asks
// for nothing. Limits that mean the same are equal.
type Limits struct {
	// Networks that the caller's address lies in one of, in CIDR form, sorted, with commas between.
	Networks string
	// From and To are minutes of the day on the clock of Zone: from the first to before the second, over midnight when To is
	// not above From. They and Zone are set together with Weekdays, or not at all.
	From, To uint16
	// Weekdays are those on which the window begins; bit 0 is Monday.
	Weekdays uint8
	Zone     string
	// Regions that the serving cell is in one of, sorted, with commas between.
	Regions string
	// Clearance asks that the principal's clearance is at least the class of what is called.
	Clearance bool
	// NotActing asks that nobody acts for the principal.
	NotActing bool
}

const (
	dayMinutes = 24 * 60
	allDays    = 1<<7 - 1
)

// LimitWords are limits as people write them.
type LimitWords struct {
	Networks []string
	// Between is "09:00-17:00", Days "mon-fri" or "mon,wed", Zone an IANA name; "" asks for nothing, and UTC.
	Between, Days, Zone string
	Regions             []string
	Clearance           bool
	NotActing           bool
}

// ParseLimits reads what a person wrote. The errors are problems.
func ParseLimits(w LimitWords) (l Limits, err error) {
	l.Clearance, l.NotActing = w.Clearance, w.NotActing
	if l.Networks, err = joined("network", w.Networks, network); err != nil {
		return l, err
	}
	if l.Regions, err = joined("region", w.Regions, region); err != nil {
		return l, err
	}
	if w.Between == "" && w.Days == "" {
		if w.Zone != "" {
			return l, problem.New(problem.Invalid, "a time zone without hours or days", "say --between 09:00-17:00 or --days mon-fri too")
		}
		return l, nil
	}
	l.To, l.Weekdays = dayMinutes, allDays
	if w.Between != "" {
		if l.From, l.To, err = hours(w.Between); err != nil {
			return l, err
		}
	}
	if w.Days != "" {
		if l.Weekdays, err = days(w.Days); err != nil {
			return l, err
		}
	}
	if l.Weekdays == allDays && l.From == 0 && l.To == dayMinutes {
		return l, problem.New(problem.Invalid, "these hours and days are always", "leave them away, or narrow them")
	}
	l.Zone = cmp.Or(w.Zone, "UTC")
	if _, err := time.LoadLocation(l.Zone); err != nil || l.Zone == "Local" {
		return l, problem.Newf(problem.Invalid, "use an IANA name such as Europe/Berlin, America/New_York or UTC", "%q is no time zone", w.Zone)
	}
	return l, nil
}

// joined brings a list of words into its one form.
func joined(noun string, words []string, one func(string) (string, error)) (string, error) {
	if len(words) > MaxLimitWords {
		return "", problem.Newf(problem.Invalid, "make several grants", "%d %ss in one grant: at most %d", len(words), noun, MaxLimitWords)
	}
	out := make([]string, 0, len(words))
	for _, w := range words {
		c, err := one(strings.TrimSpace(w))
		if err != nil {
			return "", err
		}
		out = append(out, c)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ","), nil
}

func network(word string) (string, error) {
	p, err := netip.ParsePrefix(word)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(word); err == nil {
			p, err = a.Prefix(a.BitLen())
		}
	}
	switch {
	case err != nil || strings.Contains(word, "%"):
		return "", problem.Newf(problem.Invalid, "write one like 10.20.0.0/16 or 2001:db8::/32", "%q is no network", word)
	case p.Addr().Is4In6():
		return "", problem.Newf(problem.Invalid, "write it as an IPv4 network", "%q is an IPv4 network in IPv6 form, which no caller's address is ever in", word)
	case p.Masked() != p:
		return "", problem.Newf(problem.Invalid, "write "+p.Masked().String()+", or /"+strconv.Itoa(p.Addr().BitLen())+" for the one address",
			"%q has bits set behind the network", word)
	}
	return p.String(), nil
}

func region(word string) (string, error) {
	if !IsName(word) {
		return "", problem.Newf(problem.Invalid, "write the name of a cell's region, such as eu", "%q is no region", word)
	}
	return word, nil
}

// hours reads "09:00-17:00". An end that is not after the start is on the next day.
func hours(text string) (from, to uint16, err error) {
	a, b, ok := strings.Cut(text, "-")
	from, okFrom := minute(a)
	to, okTo := minute(b)
	if to == 0 {
		to = dayMinutes
	}
	if !ok || !okFrom || !okTo || from == dayMinutes || from == to {
		return 0, 0, problem.Newf(problem.Invalid, "write them like 09:00-17:00, or 22:00-06:00 for a night", "%q are no hours of a day", text)
	}
	return from, to, nil
}

func minute(text string) (uint16, bool) {
	if text == "24:00" {
		return dayMinutes, true
	}
	t, err := time.Parse("15:04", text)
	return uint16(t.Hour()*60 + t.Minute()), err == nil && len(text) == len("15:04")
}

func dayNames() []string { return []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"} }

// days reads "mon-fri", "sat,sun" or "fri-mon".
func days(text string) (mask uint8, err error) {
	for part := range strings.SplitSeq(strings.ToLower(text), ",") {
		a, b, isRange := strings.Cut(part, "-")
		first := slices.Index(dayNames(), a)
		last := first
		if isRange {
			last = slices.Index(dayNames(), b)
		}
		if first < 0 || last < 0 {
			return 0, problem.Newf(problem.Invalid, "write them like mon-fri, or mon,wed,fri", "%q are no days of the week", text)
		}
		for d := first; ; d = (d + 1) % 7 {
			mask |= 1 << d
			if d == last {
				break
			}
		}
	}
	return mask, nil
}

// IsZero reports whether the limits ask for nothing.
func (l Limits) IsZero() bool { return l == Limits{} }

// Between is the window as ParseLimits reads it; "" for the whole day.
func (l Limits) Between() string {
	if l.Zone == "" || l.From == 0 && l.To == dayMinutes {
		return ""
	}
	return fmt.Sprintf("%02d:%02d-%02d:%02d", l.From/60, l.From%60, l.To/60, l.To%60)
}

// Days are the weekdays as ParseLimits reads them; "" for every day.
func (l Limits) Days() string {
	if l.Zone == "" || l.Weekdays == allDays {
		return ""
	}
	names, first := dayNames(), bits.TrailingZeros8(l.Weekdays)
	if n := bits.OnesCount8(l.Weekdays); n > 2 && l.Weekdays>>first == 1<<n-1 {
		return names[first] + "-" + names[first+n-1]
	}
	var out []string
	for d, name := range names {
		if l.Weekdays&(1<<d) != 0 {
			out = append(out, name)
		}
	}
	return strings.Join(out, ",")
}

// List takes a list of networks or regions apart.
func List(joined string) []string {
	if joined == "" {
		return nil
	}
	return strings.Split(joined, ",")
}

// Terms are the limits in words, each a clause that goes on from "may call it ...".
func (l Limits) Terms() []string {
	var out []string
	say := func(is bool, format string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(l.Networks != "", "from %s", strings.ReplaceAll(l.Networks, ",", " or "))
	if l.Zone != "" {
		when := strings.TrimSpace(l.Days() + " " + l.Between())
		say(true, "%s in %s", when, l.Zone)
	}
	say(l.Regions != "", "through a cell in %s", strings.ReplaceAll(l.Regions, ",", " or "))
	say(l.Clearance, "within their clearance")
	say(l.NotActing, "with nobody acting for them")
	return out
}
