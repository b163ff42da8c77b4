package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Record is one line.
type Record struct {
	Seq     uint64          `json:"seq"`
	Prev    Sum             `json:"prev"`
	Time    time.Time       `json:"time"`
	Type    string          `json:"type"`
	Service string          `json:"service"`
	Fields  json.RawMessage `json:"fields"`

	// Raw is the line as it stands, with its line feed. It is valid until the
	// next record is read.
	Raw []byte `json:"-"`
}

// Summary is what reading a whole record found.
type Summary struct {
	Segments int    `json:"segments"`
	Records  uint64 `json:"records"`
	Head     Head   `json:"head"`
	// Torn is the length of a last line that is not whole, in bytes: its write is
	// under way, or was cut short and never answered for.
	Torn int64 `json:"torn,omitempty"`
}

// Read hands out every record of the instance's chain in dir, verifying the
// chain on the way. It can read while the record is being written. The first
// break ends it with a *ChainError, unless broken is given: it is told, and the
// reading goes on behind the break if it returns nil.
func Read(ctx context.Context, dir, instance string, yield func(*Record) error, broken func(*ChainError) error) (Summary, error) {
	r := reader{dir: dir, chain: chain{instance: instance}, yield: yield, broken: broken}
	if err := r.read(ctx, 1); err != nil {
		return r.sum, err
	}
	if err := r.checkHead(); err != nil {
		return r.sum, err
	}
	return r.sum, nil
}

// chain follows lines.
type chain struct {
	instance string
	head     Head
	line     int  // of the segment, read so far
	joined   bool // false: the next line is taken as it comes
	adopting bool // a file that an administrator went on with may begin anyhow
}

// next checks that raw, with its line feed, follows. What it returns with a
// *ChainError is the line as it stands, if it is one at all.
func (c *chain) next(raw []byte) (*Record, error) {
	c.line++
	seq := c.head.Seq + 1
	broken := func(format string, args ...any) error {
		return &ChainError{File: segmentName(c.head.Segment), Line: c.line, Seq: seq, Reason: fmt.Sprintf(format, args...)}
	}
	rec := &Record{Raw: raw}
	sum := sha256.Sum256(raw)
	if err := json.Unmarshal(raw, rec); err != nil || rec.Seq == 0 {
		c.head.Seq, c.head.Sum, c.joined = seq, sum, true
		return nil, broken("it is no record")
	}
	before, joined := c.head, c.joined
	c.head.Seq, c.head.Sum, c.joined = rec.Seq, sum, true
	if (c.line == 1) != (rec.Type == Segment) {
		return rec, broken("the first line of a file, and no other, has type %s", Segment)
	}
	if c.line == 1 {
		var start struct {
			Instance string
			Segment  int
			Damage   string
		}
		if err := json.Unmarshal(rec.Fields, &start); err != nil || start.Segment != c.head.Segment {
			return rec, broken("it is the first line of %s", segmentName(start.Segment))
		}
		if start.Instance != c.instance {
			return rec, broken("it belongs to instance %q, not to %q", start.Instance, c.instance)
		}
		joined = joined && (start.Damage == "" || !c.adopting)
	}
	switch {
	case !joined:
	case rec.Prev != before.Sum:
		return rec, broken("it follows a line whose SHA-256 is %s, but the line before it has %s: one of the two was changed, or lines were removed, added or moved", rec.Prev, before.Sum)
	case rec.Seq != before.Seq+1:
		return rec, broken("it has number %d after %d", rec.Seq, before.Seq)
	}
	return rec, nil
}

type reader struct {
	dir    string
	chain  chain
	yield  func(*Record) error
	broken func(*ChainError) error
	sum    Summary

	recorded Head // what the head file names
	headErr  *HeadError
	matched  bool // it was met on the way
}

// read goes through the segments from first to the end of the chain, which may
// grow meanwhile.
func (r *reader) read(ctx context.Context, first int) error {
	// Before the lines: it never runs ahead of them.
	recorded, err := readHead(headPath(r.dir))
	if err != nil && !errors.As(err, &r.headErr) {
		return err
	}
	r.recorded = recorded
	last, missing, err := segments(r.dir)
	if err != nil {
		return err
	}
	r.chain.joined = first == 1 // the first line of all follows nothing: prev is zero
	for n := first; ; n++ {
		if slices.Contains(missing, n) {
			if err := r.tell(missingSegment(n)); err != nil {
				return err
			}
			r.chain.joined = false
			continue
		}
		err := r.segment(ctx, n, last)
		if errors.Is(err, fs.ErrNotExist) && n > last {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// tell reports a break.
func (r *reader) tell(err error) error {
	var c *ChainError
	if r.broken == nil || !errors.As(err, &c) {
		return err
	}
	return r.broken(c)
}

// segment reads one file. That there is a next one says that this one is
// complete.
func (r *reader) segment(ctx context.Context, n, last int) error {
	f, err := os.Open(segmentPath(r.dir, n))
	if err != nil {
		return err
	}
	defer f.Close()
	r.sum.Segments++
	r.sum.Torn = 0
	r.chain.line, r.chain.head.Segment = 0, n
	// A line that is there in part is read again once there is more of it.
	br := bufio.NewReaderSize(f, maxLine)
	var part []byte
	complete := n < last
	for {
		raw, err := br.ReadSlice('\n')
		switch {
		case err == nil:
			if len(part) > 0 {
				raw = append(part, raw...)
				part = nil
			}
			if err := r.line(ctx, raw); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull) || len(part)+len(raw) > maxLine:
			r.chain.line++
			r.chain.head.Seq++
			if err := r.tell(&ChainError{File: segmentName(n), Line: r.chain.line, Seq: r.chain.head.Seq, Reason: "it is longer than a record can be"}); err != nil {
				return err
			}
			for part = nil; errors.Is(err, bufio.ErrBufferFull); {
				_, err = br.ReadSlice('\n')
			}
			r.chain.joined = false
		case errors.Is(err, io.EOF):
			part = append(part, raw...)
			if !complete {
				_, serr := os.Stat(segmentPath(r.dir, n+1))
				if complete = serr == nil; complete {
					continue // there may be lines from just before
				}
			}
			r.sum.Torn = int64(len(part))
			if complete && len(part) > 0 {
				return r.tell(&ChainError{File: segmentName(n), Line: r.chain.line + 1, Seq: r.chain.head.Seq + 1, Reason: "it is cut short"})
			}
			return nil
		default:
			return fmt.Errorf("reading audit record %s: %w", segmentName(n), err)
		}
	}
}

func (r *reader) line(ctx context.Context, raw []byte) error {
	rec, err := r.chain.next(raw)
	if err := r.tell(err); err != nil {
		return err
	}
	if rec == nil {
		return nil
	}
	r.sum.Records++
	r.sum.Head = r.chain.head
	r.matched = r.matched || r.chain.head == r.recorded
	if r.yield == nil {
		return nil
	}
	if r.sum.Records%1024 == 0 && ctx.Err() != nil {
		return ctx.Err()
	}
	return r.yield(rec)
}

// checkHead compares what was read with what is known to have been written.
func (r *reader) checkHead() error {
	switch {
	case r.headErr != nil:
		r.headErr.Found = r.sum.Head
		return r.headErr
	case !r.matched:
		return headMismatch(r.recorded, r.sum.Head)
	}
	return nil
}

// tail is the whole lines at the end of a file, at least limit bytes if there
// are so many, and the offset where they begin.
func tail(f *os.File, limit int64) (window []byte, start int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	for limit += maxLine; ; limit *= 2 {
		start = max(0, info.Size()-limit)
		window = make([]byte, info.Size()-start)
		if n, err := f.ReadAt(window, start); err != nil && (!errors.Is(err, io.EOF) || n < len(window)) {
			return nil, 0, err
		}
		window = window[:bytes.LastIndexByte(window, '\n')+1]
		if start == 0 {
			return window, 0, nil
		}
		// It begins within a line, most likely.
		if cut := bytes.IndexByte(window, '\n') + 1; cut < len(window) {
			return window[cut:], start + int64(cut), nil
		}
	}
}
