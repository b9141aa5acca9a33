// Package clock tells what local clocks show. A time zone is a table of the times at which its clocks were or will be
// changed; it travels with the policy, so that a decision needs no time zone database and comes out the same wherever and
// whenever it is made again.
package clock

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Table is a time zone: what local clocks show from each change on. It is read-only.
type Table struct {
	At  []int64 // seconds since the epoch, ascending; the first is the start of the table
	Off []int32 // seconds east of Greenwich from then on
}

// The years that a zone's table covers; before and after it, the first and the last offset hold.
const (
	zoneFrom = 1970
	zoneTo   = 2075
)

// Load reads the changes of an IANA time zone from this process's own data.
func Load(name string) (Table, error) {
	var c Table
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return c, fmt.Errorf("time zone %q is not known", name)
	}
	t := time.Date(zoneFrom, 1, 1, 0, 0, 0, 0, time.UTC)
	end := time.Date(zoneTo, 1, 1, 0, 0, 0, 0, time.UTC)
	for t.Before(end) {
		_, off := t.In(loc).Zone()
		if n := len(c.Off); n == 0 || c.Off[n-1] != int32(off) {
			c.At, c.Off = append(c.At, t.Unix()), append(c.Off, int32(off))
		}
		_, next := t.In(loc).ZoneBounds()
		if next.IsZero() {
			break
		}
		if !next.After(t) {
			next = t.Add(24 * time.Hour) // the bounds of a rule's year may end where they are asked for
		}
		t = next
	}
	return c, nil
}

// What a clock shows, in the order of snapshot.ClockFields.
const (
	Minute = iota // of the day
	Hour
	Weekday // 1 is Monday
	Day
	Month
	Year
)

// maxShift bounds how far a clock may be from Greenwich.
const maxShift = 26 * 3600

// OK reports whether a table can be read: times that rise, and clocks that are on this planet.
func (c Table) OK() bool {
	for i := range c.At {
		if c.Off[i] < -maxShift || c.Off[i] > maxShift || i > 0 && c.At[i] <= c.At[i-1] {
			return false
		}
	}
	return len(c.At) > 0 && len(c.At) == len(c.Off)
}

const day = 86_400

// Read is what the clock shows in one field.
func (c Table) Read(field int, nowMS int64) int64 {
	s := floorDiv(nowMS, 1000)
	i, exact := slices.BinarySearchFunc(c.At, s, cmp.Compare[int64])
	if !exact {
		i--
	}
	s += int64(c.Off[max(i, 0)])
	days := floorDiv(s, day)
	switch field {
	case Minute:
		return (s - days*day) / 60
	case Hour:
		return (s - days*day) / 3600
	case Weekday:
		// The epoch was a Thursday.
		return (days+3)%7 + 1 + 7*((days+3)%7>>63&1)
	}
	y, m, d := civil(days)
	switch field {
	case Day:
		return d
	case Month:
		return m
	}
	return y
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// civil is the date of a day since the epoch in the proleptic Gregorian calendar. Years begin in March here, so that the
// leap day is the last of its year.
func civil(days int64) (year, month, dayOfMonth int64) {
	z := days + 719_468
	era := floorDiv(z, 146_097)
	doe := z - era*146_097
	yoe := (doe - doe/1460 + doe/36_524 - doe/146_096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	dayOfMonth = doy - (153*mp+2)/5 + 1
	month = mp + 3
	if month > 12 {
		month -= 12
	}
	year = yoe + era*400
	if month <= 2 {
		year++
	}
	return year, month, dayOfMonth
}
