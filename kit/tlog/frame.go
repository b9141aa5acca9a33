package tlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
)

// A segment file is a header and frames. A frame is the record's length (4 bytes, little endian), a CRC-32C (4 bytes) over
// the record, its index in the log and the length, and the record. The index in the sum makes a moved record as visible as
// a changed one.
const (
	frameHeader = 8
	// SegmentHeader is the size of a segment's header: magic, index of the first record, first bytes of the origin's hash, sum.
	SegmentHeader = 32
	segmentMagic  = "mvtlog1\n"
	segmentSuffix = ".seg"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	// errTorn says that the bytes end inside a frame.
	errTorn = errors.New("the file ends inside a record")
	errSum  = errors.New("checksum does not match")
	errLen  = errors.New("length is impossible")
)

func recordSum(rec []byte) uint32 { return crc32.Update(0, castagnoli, rec) }

// frameSum is crc32.Update with the index and the length in little endian, byte by byte: through the package, the twelve
// bytes would be an allocation for each record.
func frameSum(sum uint32, index int64, length int) uint32 {
	sum = ^sum
	for i := range 8 {
		sum = castagnoli[byte(sum)^byte(index>>(8*i))] ^ sum>>8
	}
	for i := range 4 {
		sum = castagnoli[byte(sum)^byte(length>>(8*i))] ^ sum>>8
	}
	return ^sum
}

// appendFrame appends the record's frame; sum is recordSum(rec).
func appendFrame(dst []byte, index int64, rec []byte, sum uint32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(rec)))
	dst = binary.LittleEndian.AppendUint32(dst, frameSum(sum, index, len(rec)))
	return append(dst, rec...)
}

// parseFrame reads the frame of the record with the given index at the start of b. The record is a part of b.
func parseFrame(b []byte, index int64) (rec []byte, size int, err error) {
	if len(b) < frameHeader {
		return nil, 0, errTorn
	}
	n := binary.LittleEndian.Uint32(b)
	if n == 0 || n > MaxRecord {
		return nil, 0, errLen
	}
	size = frameHeader + int(n)
	if len(b) < size {
		return nil, size, errTorn
	}
	rec = b[frameHeader:size:size]
	if frameSum(recordSum(rec), index, len(rec)) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, size, errSum
	}
	return rec, size, nil
}

// segmentHeader is the first bytes of the segment that begins with the record at first.
func segmentHeader(origin string, first int64) []byte {
	b := make([]byte, 0, SegmentHeader)
	b = append(b, segmentMagic...)
	b = binary.LittleEndian.AppendUint64(b, uint64(first))
	h := leafHash([]byte(origin))
	b = append(b, h[:12]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func checkSegmentHeader(b []byte, origin string, first int64) error {
	if !bytes.Equal(b, segmentHeader(origin, first)) {
		return fmt.Errorf("the header is not that of the segment from record %d of %s", first, origin)
	}
	return nil
}

// SegmentName is the file name of the segment that begins with the record at first.
func SegmentName(first int64) string { return fmt.Sprintf("%016x%s", first, segmentSuffix) }

// ParseSegmentName is the inverse of SegmentName.
func ParseSegmentName(name string) (first int64, ok bool) {
	hex, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(hex) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 63)
	if err != nil || SegmentName(int64(n)) != name {
		return 0, false
	}
	return int64(n), true
}

// frameReader walks over the frames of a segment.
type frameReader struct {
	r     io.ReaderAt
	off   int64 // of the next frame
	index int64 // of the next record
	buf   []byte
	at    int // next frame in buf
	eof   bool
	chunk int
}

func newFrameReader(r io.ReaderAt, off, index int64, chunk int) *frameReader {
	return &frameReader{r: r, off: off, index: index, chunk: chunk}
}

// next returns the next record, which is valid until the call after. io.EOF is the clean end of the file; errTorn, errSum
// and errLen leave off at the frame that is wrong; anything else comes from the file.
func (f *frameReader) next() ([]byte, error) {
	for {
		rec, size, err := parseFrame(f.buf[f.at:], f.index)
		if errors.Is(err, errTorn) && !f.eof {
			if err := f.fill(max(size, f.chunk, 2*(len(f.buf)-f.at))); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			if f.at == len(f.buf) {
				return nil, io.EOF
			}
			return nil, err
		}
		f.at += size
		f.off += int64(size)
		f.index++
		return rec, nil
	}
}

// fill reads on, keeping what was not used, until there are so many bytes.
func (f *frameReader) fill(want int) error {
	rest := len(f.buf) - f.at
	buf := f.buf
	if cap(buf) < want {
		buf = make([]byte, 0, want)
	}
	buf = append(buf[:0], f.buf[f.at:]...)
	n, err := f.r.ReadAt(buf[rest:cap(buf)], f.off+int64(rest))
	f.buf, f.at = buf[:rest+n], 0
	if errors.Is(err, io.EOF) {
		f.eof = true
		return nil
	}
	return err
}
