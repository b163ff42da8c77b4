package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// Options say which record.
type Options struct {
	// Dir holds the record and nothing else.
	Dir string
	// Instance is the identity that the chain is bound to.
	Instance string
	// SegmentBytes is the size at which a new file is begun. Zero means 64 MiB.
	SegmentBytes int64
}

// headInterval is the time between two writings of the head file: how much of
// the record's end could go missing without being noticed by it.
const headInterval = time.Second

// Create makes an empty record in an existing folder. It refuses to overwrite
// one.
func Create(o Options) error {
	line, head, err := firstLine(o.Instance, "", Head{})
	if err != nil {
		return err
	}
	if err := durable.WriteNew(segmentPath(o.Dir, 1), line, 0o600); err != nil {
		return fmt.Errorf("making audit record: %w", err)
	}
	return writeHead(headPath(o.Dir), head)
}

// Open continues an existing record. It verifies the last mebibyte of the chain
// and that the chain contains what the head file says: damage there is an error
// that wraps ErrDamaged. (Read verifies all of it.)
//
// A last line that is not whole is cut off. Nothing acknowledged is lost with
// it: an event is acknowledged after a sync that covers its line with its line
// feed, and no byte is written behind the line until then. So bytes behind the
// last line feed belong to a write that was cut short.
func Open(o Options) (*Log, error) {
	end, err := findEnd(o)
	if err != nil {
		return nil, err
	}
	if err := end.checkHead(o); err != nil {
		return nil, err
	}
	return open(o, end)
}

// end is where a record continues.
type end struct {
	head    Head
	segment int   // the file to write to
	size    int64 // of its whole lines; 0: it has not even its first
	// window is verified and reaches up to size; Seqs from first on are in it.
	window []byte
	sums   map[uint64]Sum
	clean  bool // the record was closed, not interrupted
}

func findEnd(o Options) (end, error) {
	last, missing, err := segments(o.Dir)
	if err != nil {
		return end{}, err
	}
	if len(missing) > 0 && !admitted(o.Dir, missing[len(missing)-1], last) {
		return end{}, missingSegment(missing[0])
	}
	e, err := tailOf(o, last)
	if err != nil || e.size > 0 {
		return e, err
	}
	// The file was being begun. So the one before is complete.
	if last == 1 {
		return e, &ChainError{File: segmentName(1), Line: 1, Seq: 1, Reason: "it is missing"}
	}
	if e, err = tailOf(o, last-1); err != nil {
		return e, err
	}
	if e.size == 0 {
		return e, &ChainError{File: segmentName(last - 1), Line: 1, Reason: "it is missing"}
	}
	e.segment, e.size, e.window, e.clean = last, 0, nil, true
	return e, nil
}

// tailOf verifies the end of one file, and how it follows the one before.
func tailOf(o Options, n int) (end, error) {
	e := end{segment: n, sums: map[uint64]Sum{}}
	f, err := os.Open(segmentPath(o.Dir, n))
	if err != nil {
		return e, fmt.Errorf("opening audit record: %w", err)
	}
	defer f.Close()
	window, start, err := tail(f, maxBatch+maxLine)
	if err != nil {
		return e, fmt.Errorf("reading audit record %s: %w", segmentName(n), err)
	}
	e.window, e.size = window, start+int64(len(window))
	if info, err := f.Stat(); err != nil {
		return e, err
	} else if torn := info.Size() - e.size; torn > maxLine {
		return e, &ChainError{File: segmentName(n), Reason: fmt.Sprintf("the %d bytes behind its last line are no torn line", torn)}
	}
	c := chain{instance: o.Instance, head: Head{Segment: n}, adopting: true}
	if start > 0 {
		c.line = 1 // or later
	} else if len(window) > 0 {
		if err := joinBefore(o, n, &c); err != nil {
			return e, err
		}
	}
	for rest := window; len(rest) > 0; {
		i := bytes.IndexByte(rest, '\n') + 1
		rec, err := c.next(rest[:i])
		var broken *ChainError
		if errors.As(err, &broken) && start > 0 {
			before, cerr := countLines(f, start)
			if cerr != nil {
				return e, cerr
			}
			broken.Line += before - 1
		}
		if err != nil {
			return e, err
		}
		e.sums[rec.Seq] = c.head.Sum
		e.clean = rec.Type == Stopped
		rest = rest[i:]
	}
	e.head = c.head
	return e, nil
}

// joinBefore prepares c for the first line of file n.
func joinBefore(o Options, n int, c *chain) error {
	if admitted(o.Dir, n-1, n) {
		return nil
	}
	c.joined = true
	if n == 1 {
		return nil
	}
	f, err := os.Open(segmentPath(o.Dir, n-1))
	if err != nil {
		return fmt.Errorf("opening audit record: %w", err)
	}
	defer f.Close()
	window, start, err := tail(f, 0)
	if err != nil {
		return fmt.Errorf("reading audit record %s: %w", segmentName(n-1), err)
	}
	before := chain{instance: o.Instance, head: Head{Segment: n - 1}, adopting: true}
	if start > 0 {
		before.line = 1
	}
	for line := range bytes.Lines(window) {
		before.joined = false // only the last matters
		_, err = before.next(line)
	}
	if err != nil || before.head.Seq == 0 {
		// What it is will be said by whoever reads all.
		return &ChainError{File: segmentName(n - 1), Reason: "its last line is no record"}
	}
	c.head.Seq, c.head.Sum = before.head.Seq, before.head.Sum
	return nil
}

// admitted says whether the first line of a file behind the given one admits
// damage before it.
func admitted(dir string, behind, last int) bool {
	for n := last; n > behind; n-- {
		f, err := os.Open(segmentPath(dir, n))
		if err != nil {
			continue
		}
		line, err := bufio.NewReaderSize(f, maxLine).ReadSlice('\n')
		var rec struct{ Fields struct{ Damage string } }
		ok := err == nil && json.Unmarshal(line, &rec) == nil && rec.Fields.Damage != ""
		if f.Close(); ok {
			return true
		}
	}
	return false
}

func countLines(f *os.File, end int64) (int, error) {
	n, buf := 0, make([]byte, 1<<20)
	for at := int64(0); at < end; {
		part := buf[:min(int64(len(buf)), end-at)]
		if _, err := f.ReadAt(part, at); err != nil {
			return 0, err
		}
		n, at = n+bytes.Count(part, []byte{'\n'}), at+int64(len(part))
	}
	return n, nil
}

// checkHead demands that the chain contains what the head file names.
func (e end) checkHead(o Options) error {
	recorded, err := readHead(headPath(o.Dir))
	var missing *HeadError
	if errors.As(err, &missing) {
		missing.Found = e.head
		return missing
	}
	if err != nil {
		return err
	}
	if sum, ok := e.sums[recorded.Seq]; ok && sum == recorded.Sum {
		return nil
	} else if ok || recorded.Seq > e.head.Seq {
		return headMismatch(recorded, e.head)
	}
	// It is further back than was verified: the record grew by more than that
	// within the head's interval.
	r := reader{dir: o.Dir, chain: chain{instance: o.Instance, adopting: true}}
	if err := r.read(context.Background(), min(recorded.Segment, e.segment)); err != nil {
		return err
	}
	return r.checkHead()
}

// open makes the file ready to be written.
func open(o Options, e end) (_ *Log, err error) {
	f, err := os.OpenFile(segmentPath(o.Dir, e.segment), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening audit record: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("opening audit record %s: %w", segmentName(e.segment), err), f.Close())
		}
	}()
	if err := f.Truncate(e.size); err != nil {
		return nil, err
	}
	if !e.clean {
		// After a failed sync the kernel may hold lines that the disk does not,
		// and takes them for written. Writing the same bytes again makes sure; a
		// power cut meanwhile leaves the same bytes.
		if _, err := f.WriteAt(e.window, e.size-int64(len(e.window))); err != nil {
			return nil, err
		}
	}
	l := newLog(o)
	l.file, l.size, l.head = f, e.size, e.head
	if e.size > 0 {
		err = f.Sync()
	} else {
		l.size, l.head, err = begin(f, o.Instance, e.head)
	}
	if err != nil {
		return nil, err
	}
	l.written = l.head // and the head file may be behind
	l.start()
	return l, nil
}

// begin writes the first line of the file that follows head.
func begin(f *os.File, instance string, head Head) (int64, Head, error) {
	line, next, err := firstLine(instance, "", head)
	if err != nil {
		return 0, head, err
	}
	if _, err := f.WriteAt(line, 0); err != nil {
		return 0, head, err
	}
	return int64(len(line)), next, f.Sync()
}

// Adopt makes a damaged record one that Open continues, on an administrator's
// word. Nothing of it is changed but what Open would cut off: a new file is begun
// whose first line says what was wrong, and the damage stays where it is, for
// Read to name. It returns what was wrong; nil means that nothing was, and that
// nothing was done. The caller sees to it that nobody else writes the record.
func Adopt(o Options) (damage, err error) {
	e, damage := findEnd(o)
	if damage == nil {
		damage = e.checkHead(o)
	}
	if !errors.Is(damage, ErrDamaged) {
		return nil, damage
	}
	last, _, err := segments(o.Dir)
	if err != nil {
		return damage, err
	}
	f, err := os.OpenFile(segmentPath(o.Dir, last), os.O_RDWR, 0)
	if err != nil {
		return damage, fmt.Errorf("opening audit record: %w", err)
	}
	defer f.Close()
	window, start, err := tail(f, maxBatch)
	if err != nil {
		return damage, fmt.Errorf("reading audit record: %w", err)
	}
	c := chain{instance: o.Instance, head: Head{Segment: last}}
	for line := range bytes.Lines(window) {
		_, _ = c.next(line) // broken, maybe: it matters where they end
	}
	if recorded, err := readHead(headPath(o.Dir)); err == nil {
		c.head.Seq = max(c.head.Seq, recorded.Seq) // no number twice
	}
	if err := f.Truncate(start + int64(len(window))); err != nil {
		return damage, err
	}
	if err := f.Sync(); err != nil {
		return damage, err
	}
	line, head, err := firstLine(o.Instance, damage.Error(), c.head)
	if err != nil {
		return damage, err
	}
	if err := durable.WriteNew(segmentPath(o.Dir, head.Segment), line, 0o600); err != nil {
		return damage, fmt.Errorf("writing audit record: %w", err)
	}
	return damage, writeHead(headPath(o.Dir), head)
}

// End verifies the end of a record, as Open does, and returns it. The record may
// be in use.
func End(o Options) (Head, error) {
	e, err := findEnd(o)
	return e.head, err
}
