package report

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// The elements of JUnit's XML that build servers read.
type (
	suite struct {
		XMLName  xml.Name `xml:"testsuite"`
		Name     string   `xml:"name,attr"`
		Tests    int      `xml:"tests,attr"`
		Failures int      `xml:"failures,attr"`
		Skipped  int      `xml:"skipped,attr"`
		Time     string   `xml:"time,attr"`
		Stamp    string   `xml:"timestamp,attr"`
		Cases    []kase   `xml:"testcase"`
	}
	kase struct {
		Class   string  `xml:"classname,attr"`
		Name    string  `xml:"name,attr"`
		Time    string  `xml:"time,attr"`
		Failure *reason `xml:"failure,omitempty"`
		Skipped *reason `xml:"skipped,omitempty"`
		Out     string  `xml:"system-out,omitempty"`
	}
	reason struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// JUnit is the run for build servers: a drill is a test case, one that could not be run is skipped.
func (r *Run) JUnit() ([]byte, error) {
	s := suite{Name: "mcpvault drill", Tests: len(r.Drills), Time: fmt.Sprintf("%.3f", r.Seconds), Stamp: r.Started.Format("2006-01-02T15:04:05")}
	for _, d := range r.Drills {
		c := kase{Class: "drill", Name: d.Name, Time: fmt.Sprintf("%.3f", d.Seconds)}
		switch {
		case d.Unavailable != "":
			s.Skipped++
			c.Skipped = &reason{Message: d.Unavailable}
		case !d.Passed:
			s.Failures++
			c.Failure = &reason{Message: strings.Join(d.Findings, "; ")}
		}
		var out strings.Builder
		for _, e := range d.Timeline {
			fmt.Fprintf(&out, "%.2f %s\n", e.Seconds, e.What)
		}
		c.Out = out.String()
		s.Cases = append(s.Cases, c)
	}
	b, err := xml.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the JUnit report: %w", err)
	}
	return append([]byte(xml.Header), append(b, '\n')...), nil
}
