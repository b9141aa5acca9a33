package check

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
)

// Log names a log that somebody hands out: the control plane, or a bundle.
type Log struct {
	Origin      string   `json:"log"`
	VerifierKey string   `json:"verifier_key"`
	Checkpoints [][]byte `json:"checkpoints"`
}

// Online proves every log of a server that is not trusted. read returns records of a log from an index on, in order, and
// none at the end. pinned are verifier keys by origin that the caller knows from before; a log that comes with another key
// is at fault.
func Online(
	ctx context.Context, logs []Log, pinned map[string]string,
	read func(ctx context.Context, origin string, first int64) ([][]byte, error),
) ([]Report, error) {
	reports := make([]Report, 0, len(logs))
	for _, log := range logs {
		if key, ok := pinned[log.Origin]; ok && key != log.VerifierKey {
			reports = append(reports, Report{
				Origin: log.Origin, VerifierKey: log.VerifierKey,
				Fault: &Fault{Kind: Unsigned, Index: -1, What: "the log comes with another key than the one that is pinned"},
			})
			continue
		}
		r, err := Leaves(log.VerifierKey, pages(ctx, log.Origin, read), log.Checkpoints...)
		if err != nil {
			return reports, err
		}
		reports = append(reports, named(r, log.Origin))
	}
	return reports, nil
}

// named holds the report to the name under which the log was handed out.
func named(r Report, origin string) Report {
	if r.Fault == nil && r.Origin != origin {
		r.Fault = &Fault{Kind: Unsigned, Index: -1, What: fmt.Sprintf("the key is that of %s, not of %s", r.Origin, origin)}
	}
	r.Origin = origin
	return r
}

func pages(
	ctx context.Context, origin string, read func(context.Context, string, int64) ([][]byte, error),
) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for first := int64(0); ; {
			recs, err := read(ctx, origin, first)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(recs) == 0 {
				return
			}
			for _, rec := range recs {
				if !yield(rec, nil) {
					return
				}
			}
			first += int64(len(recs))
		}
	}
}

// A bundle is lines of JSON: a Log, its leaves in order, the next Log. Anybody can read it with other tools.
type leafLine struct {
	Leaf []byte `json:"leaf"`
}

// WriteBundle writes one log. Bundles of several logs are written one after the other.
func WriteBundle(w io.Writer, log Log, leaves iter.Seq2[[]byte, error]) error {
	b := bufio.NewWriter(w)
	enc := json.NewEncoder(b)
	if err := enc.Encode(log); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	for leaf, err := range leaves {
		if err != nil {
			return err
		}
		if err := enc.Encode(leafLine{leaf}); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// maxLine bounds a line of a bundle: a record in base64, or a log with its checkpoints.
const maxLine = 1 << 20

// Bundle proves a bundle. pinned is as in Online.
func Bundle(r io.Reader, pinned map[string]string) ([]Report, error) {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxLine)
	var reports []Report
	var next *Log
	read := func() (*Log, []byte, error) {
		if !s.Scan() {
			return nil, nil, errors.Join(s.Err(), io.EOF)
		}
		var line struct {
			Log
			leafLine
		}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			return nil, nil, fmt.Errorf("read bundle: %w", err)
		}
		if line.Origin != "" {
			return &line.Log, nil, nil
		}
		if len(line.Leaf) == 0 {
			return nil, nil, errors.New("read bundle: a line is neither a log nor a leaf")
		}
		return nil, line.Leaf, nil
	}
	next, leaf, err := read()
	if err == nil && next == nil {
		return nil, fmt.Errorf("read bundle: it begins with a leaf of %d bytes, not with a log", len(leaf))
	}
	for next != nil {
		log := *next
		next = nil
		rs, err := Online(context.Background(), []Log{log}, pinned, func(context.Context, string, int64) ([][]byte, error) {
			l, leaf, err := read()
			if errors.Is(err, io.EOF) && s.Err() == nil {
				return nil, nil
			}
			if l != nil {
				next = l
				return nil, nil
			}
			return [][]byte{leaf}, err
		})
		reports = append(reports, rs...)
		if err != nil {
			return reports, err
		}
		// A log that was not read to its end, because its key is wrong, is passed over.
		for next == nil {
			if next, _, err = read(); err != nil {
				break
			}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return reports, err
	}
	return reports, s.Err()
}
