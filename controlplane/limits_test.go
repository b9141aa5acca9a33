package controlplane_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/mcpvault/mcpvault/controlplane"
	"github.com/mcpvault/mcpvault/kit/problem"
)

func TestLimitsThatMeanTheSameAreEqual(t *testing.T) {
	t.Parallel()
	one, err := controlplane.ParseLimits(controlplane.LimitWords{
		Networks: []string{"192.0.2.7", "10.0.0.0/8", "10.0.0.0/8"}, Days: "MON-fri", Between: "09:00-17:00", Regions: []string{"us", "eu"},
	})
	if err != nil {
		t.Fatal(err)
	}
	two, err := controlplane.ParseLimits(controlplane.LimitWords{
		Networks: []string{"10.0.0.0/8", "192.0.2.7/32"}, Days: "fri,mon,tue-thu", Between: "09:00-17:00", Zone: "UTC", Regions: []string{"eu", "us", "us"},
	})
	if err != nil || one != two {
		t.Errorf("%+v is not %+v, %v", one, two, err)
	}
	want := []string{"from 10.0.0.0/8 or 192.0.2.7/32", "mon-fri 09:00-17:00 in UTC", "through a cell in eu or us"}
	if got := one.Terms(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if none, err := controlplane.ParseLimits(controlplane.LimitWords{}); err != nil || !none.IsZero() || none.Terms() != nil {
		t.Errorf("nothing asked for is %+v, %v", none, err)
	}
}

func TestHoursAndDaysAreWrittenAsTheyAreRead(t *testing.T) {
	t.Parallel()
	for _, w := range []controlplane.LimitWords{
		{Between: "22:00-06:00", Days: "fri,sat", Zone: "Europe/Berlin"},
		{Between: "00:00-12:30", Zone: "UTC"},
		{Days: "sat,sun", Zone: "America/New_York"},
		{Days: "mon,wed,fri", Zone: "UTC"},
		{Between: "18:00-24:00", Days: "sun", Zone: "UTC"},
		{Days: "tue-thu", Zone: "Asia/Kathmandu"},
	} {
		l, err := controlplane.ParseLimits(w)
		if err != nil || l.Between() != w.Between || l.Days() != w.Days || l.Zone != w.Zone {
			t.Errorf("%+v: got %s %s %s, %v", w, l.Between(), l.Days(), l.Zone, err)
		}
	}
}

func TestLimitsThatCannotHoldOrAlwaysHoldAreRefused(t *testing.T) {
	t.Parallel()
	for want, w := range map[string]controlplane.LimitWords{
		"is no network":             {Networks: []string{"10.0.0"}},
		"bits set behind":           {Networks: []string{"10.1.2.3/8"}},
		"IPv4 network in IPv6 form": {Networks: []string{"::ffff:10.0.0.0/104"}},
		`"fe80::1%eth0" is no`:      {Networks: []string{"fe80::1%eth0"}},
		"is no region":              {Regions: []string{"eu,us"}},
		"at most 32":                {Regions: slices.Repeat([]string{"eu"}, 33)},
		"no hours of a day":         {Between: "9-17"},
		`"24:00-01:00"`:             {Between: "24:00-01:00"},
		`"09:00-09:00"`:             {Between: "09:00-09:00"},
		"no days of the week":       {Days: "weekday"},
		"are always":                {Between: "00:00-24:00"},
		"hours and days are always": {Days: "mon-sun"},
		"is no time zone":           {Days: "mon", Zone: "Berlin"},
		`"Local" is no time zone`:   {Days: "mon", Zone: "Local"},
		"without hours or days":     {Zone: "UTC"},
	} {
		if _, err := controlplane.ParseLimits(w); problem.CodeOf(err) != problem.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %q", w, err, want)
		}
	}
}

func FuzzParseLimits(f *testing.F) {
	f.Add("10.0.0.0/8", "09:00-17:00", "mon-fri", "Europe/Berlin", "eu")
	f.Add("2001:db8::/32", "22:00-06:00", "sun-mon", "UTC", "us")
	f.Fuzz(func(t *testing.T, network, between, days, zone, region string) {
		l, err := controlplane.ParseLimits(controlplane.LimitWords{Networks: []string{network}, Between: between, Days: days, Zone: zone, Regions: []string{region}})
		if err != nil {
			return
		}
		again, err := controlplane.ParseLimits(controlplane.LimitWords{
			Networks: controlplane.List(l.Networks), Between: l.Between(), Days: l.Days(), Zone: l.Zone, Regions: controlplane.List(l.Regions),
		})
		if err != nil || again != l {
			t.Errorf("%+v became %+v, %v", l, again, err)
		}
	})
}
