package clock

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A zone's table shows what the time package shows, at every change of the clock and at random times between.
func TestClockShowsWhatTheTimePackageShows(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(7, 7))
	from, to := time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC).Unix(), time.Date(2074, 12, 30, 0, 0, 0, 0, time.UTC).Unix()
	for _, name := range []string{
		"UTC", "Europe/Berlin", "Europe/Dublin", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Asia/Kathmandu",
		"Australia/Lord_Howe", "Pacific/Apia", "Pacific/Chatham", "Africa/Casablanca", "America/Sao_Paulo",
	} {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Load(name)
		if err != nil || !c.OK() {
			t.Fatalf("%s: %v", name, err)
		}
		var at []int64
		for _, s := range c.At[1:] {
			at = append(at, s*1000-1, s*1000, s*1000+1)
		}
		for range 2000 {
			at = append(at, (from+r.Int64N(to-from))*1000+r.Int64N(1000))
		}
		for _, ms := range at {
			want := time.UnixMilli(ms).In(loc)
			for field, v := range []int{
				Minute: want.Hour()*60 + want.Minute(), Hour: want.Hour(), Weekday: (int(want.Weekday())+6)%7 + 1,
				Day: want.Day(), Month: int(want.Month()), Year: want.Year(),
			} {
				if got := c.Read(field, ms); got != int64(v) {
					t.Fatalf("%s at %v: field %d shows %d, want %d", name, want, field, got, v)
				}
			}
		}
	}
}

func TestUnknownZoneIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", "Local", "Europe/Atlantis", "../../etc/passwd"} {
		if _, err := Load(name); err == nil {
			t.Errorf("%q taken for a time zone", name)
		}
	}
}
