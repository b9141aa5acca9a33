package index

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// clock is a time zone: what local clocks show from each transition on.
type clock struct {
	at  []int64 // seconds since the epoch, ascending; the first is the start of the table
	off []int32 // seconds east of Greenwich from then on
}

// The years that a zone's table covers; before and after it, the first and the last offset hold.
const (
	zoneFrom = 1970
	zoneTo   = 2075
)

// zoneTable reads the transitions of an IANA time zone.
func zoneTable(name string) (clock, error) {
	var c clock
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" || name == "Local" {
		return c, fmt.Errorf("time zone %q is not known", name)
	}
	t := time.Date(zoneFrom, 1, 1, 0, 0, 0, 0, time.UTC)
	end := time.Date(zoneTo, 1, 1, 0, 0, 0, 0, time.UTC)
	for t.Before(end) {
		_, off := t.In(loc).Zone()
		if n := len(c.off); n == 0 || c.off[n-1] != int32(off) {
			c.at, c.off = append(c.at, t.Unix()), append(c.off, int32(off))
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

// The fields in the order of snapshot.ClockFields.
const (
	fieldMinute = iota
	fieldHour
	fieldWeekday
	fieldDay
	fieldMonth
	fieldYear
)

const day = 86_400

// read is what the clock shows in one field.
func (c clock) read(field int, nowMS int64) int64 {
	s := floorDiv(nowMS, 1000)
	i, exact := slices.BinarySearchFunc(c.at, s, cmp.Compare[int64])
	if !exact {
		i--
	}
	s += int64(c.off[max(i, 0)])
	days := floorDiv(s, day)
	switch field {
	case fieldMinute:
		return (s - days*day) / 60
	case fieldHour:
		return (s - days*day) / 3600
	case fieldWeekday:
		// The epoch was a Thursday.
		return (days+3)%7 + 1 + 7*((days+3)%7>>63&1)
	}
	y, m, d := civil(days)
	switch field {
	case fieldDay:
		return d
	case fieldMonth:
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

// clock is the i-th time zone of the index.
func (x *Index) clock(i int) clock {
	if i >= len(x.clocks) {
		return x.ov.clocks[i-len(x.clocks)]
	}
	return x.clocks[i]
}
