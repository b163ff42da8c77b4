package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

const (
	// stallAfter is how long a write may take before nobody waits for the next.
	stallAfter = 5 * time.Second
	// retryEvery is the time between two attempts of Check to get going again.
	retryEvery = time.Second
	// defaultSegment is the size at which a new file is begun, in bytes.
	defaultSegment = 64 << 20
)

// Log is an append-only chain of events. It is safe for concurrent use.
type Log struct {
	o       Options
	closing chan struct{}
	working sync.WaitGroup // writer, and keeper of the head file

	// The writer's own.
	file file
	size int64 // bytes of the file that are durable
	head Head

	mu       sync.Mutex
	wake     chan struct{} // holds one token: there may be something to do
	waiting  []*pending
	since    time.Time // when the write under way was begun; zero: there is none
	written  Head      // what is durable
	recorded Head      // what the head file says
	headErr  error
	failed   error // of the last write
	fatal    bool  // and there will be none after it
	retried  time.Time
	closed   bool
}

// file is an *os.File, whose disk may fail.
type file interface {
	WriteAt(b []byte, off int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Close() error
}

type pending struct {
	body []byte
	done chan error // holds one
}

func newLog(o Options) *Log {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegment
	}
	return &Log{o: o, closing: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// Unusable is a log that takes nothing, because of err.
func Unusable(err error) *Log {
	l := newLog(Options{})
	l.failed, l.fatal = err, true
	return l
}

func (l *Log) start() {
	l.working.Go(l.write)
	l.working.Go(l.keepHead)
}

// Append implements Func. An error means that the event is not known to be on
// disk. If the disk has no room, later events are tried again; after any other
// I/O error they all fail, because the state of the file is unknown.
func (l *Log) Append(ctx context.Context, e Event) error {
	body, err := e.encode()
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &pending{body: body, done: make(chan error, 1)}
	l.mu.Lock()
	switch {
	case l.fatal:
		err = l.failed
	case l.closed:
		err = ErrClosed
	case l.stalled():
		err = ErrStalled
	default:
		l.waiting = append(l.waiting, p)
		l.signal()
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		// Whether it was written meanwhile or not, it is withheld now.
		l.mu.Lock()
		if i := slices.Index(l.waiting, p); i >= 0 {
			l.waiting = slices.Delete(l.waiting, i, i+1)
		}
		l.mu.Unlock()
		return fmt.Errorf("waiting for the audit record: %w", ctx.Err())
	}
}

func (l *Log) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *Log) stalled() bool { return !l.since.IsZero() && time.Since(l.since) > stallAfter }

// Check says why the next event might not get onto the disk, or nil. Where the
// last one did not, it tries whether one would now.
func (l *Log) Check(ctx context.Context) error {
	l.mu.Lock()
	failed, try := l.failed, false
	switch {
	case l.stalled():
		failed = ErrStalled
	case l.fatal:
	case failed != nil && time.Since(l.retried) >= retryEvery:
		try, l.retried = true, time.Now()
	case failed == nil:
		failed = l.headErr
	}
	l.mu.Unlock()
	if !try {
		return failed
	}
	return l.Append(ctx, Event{Type: Resumed, Service: "audit", Fields: map[string]any{"after": failed.Error()}})
}

// Head is the durable end of the chain.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// Close waits for events under way and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if first {
		close(l.closing)
	}
	l.working.Wait()
	if !first || l.file == nil {
		return nil
	}
	return errors.Join(l.recordHead(), l.file.Close())
}

// write writes what is waiting, together.
func (l *Log) write() {
	for {
		select {
		case <-l.wake:
			for l.writeWaiting() {
				// Those who were just answered come back with their next event:
				// it goes with this batch, not with the one after.
				runtime.Gosched()
			}
		case <-l.closing:
			for l.writeWaiting() {
			}
			return
		}
	}
}

// keepHead writes the head file now and then; no event waits for it.
func (l *Log) keepHead() {
	tick := time.NewTicker(headInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = l.recordHead() // Check tells of it, and the next tick tries again
		case <-l.closing:
			return
		}
	}
}

// writeWaiting writes a batch, and says whether there was one.
func (l *Log) writeWaiting() bool {
	l.mu.Lock()
	n, size := 0, 0
	for n < len(l.waiting) && size < maxBatch {
		size += len(l.waiting[n].body)
		n++
	}
	batch := l.waiting[:n:n]
	l.waiting = l.waiting[n:]
	if n == 0 {
		l.waiting = nil
		l.mu.Unlock()
		return false
	}
	fatal, err := l.fatal, l.failed
	l.since = time.Now()
	l.mu.Unlock()

	if !fatal {
		fatal, err = l.commit(batch)
	}

	l.mu.Lock()
	l.since, l.failed, l.fatal, l.written = time.Time{}, err, fatal, l.head
	if err != nil {
		l.retried = time.Now()
	}
	l.mu.Unlock()
	for _, p := range batch {
		p.done <- err
	}
	return true
}

// commit makes a batch durable. A fatal error leaves the file's state unknown.
func (l *Log) commit(batch []*pending) (fatal bool, err error) {
	if l.size >= l.o.SegmentBytes {
		if err := l.rotate(); err != nil {
			return false, fmt.Errorf("beginning another file of the audit record: %w", err)
		}
	}
	size := 0
	for _, p := range batch {
		size += len(p.body) + 128
	}
	buf, head := make([]byte, 0, size), l.head
	for _, p := range batch {
		buf, head = link(buf, p.body, head)
	}
	if _, err := l.file.WriteAt(buf, l.size); err != nil {
		// Part of it may be there. Nothing of it was promised.
		err = fmt.Errorf("writing audit record: %w", err)
		if terr := l.file.Truncate(l.size); terr != nil {
			return true, errors.Join(err, terr)
		}
		return false, err
	}
	if err := l.file.Sync(); err != nil {
		return true, fmt.Errorf("writing audit record: %w", err)
	}
	l.size, l.head = l.size+int64(len(buf)), head
	return false, nil
}

// rotate begins the next file. What fails leaves the present one in use, and a
// file without a whole first line, which the next attempt begins anew.
func (l *Log) rotate() error {
	next := l.head.Segment + 1
	if next > maxSegments {
		return fmt.Errorf("%d files are the most there can be", maxSegments)
	}
	f, err := os.OpenFile(segmentPath(l.o.Dir, next), os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	size, head, err := begin(f, l.o.Instance, l.head)
	if err == nil {
		err = durable.SyncDir(l.o.Dir)
	}
	if err != nil {
		return errors.Join(err, f.Truncate(0), f.Close())
	}
	old := l.file
	l.file, l.size, l.head = f, size, head
	return old.Close() // synced long since
}

// recordHead brings the head file up to date.
func (l *Log) recordHead() error {
	l.mu.Lock()
	head, due := l.written, l.written != l.recorded || l.headErr != nil
	due = due && !l.fatal
	l.mu.Unlock()
	if !due {
		return nil
	}
	err := writeHead(headPath(l.o.Dir), head)
	l.mu.Lock()
	l.headErr = err
	if err == nil {
		l.recorded = head
	}
	l.mu.Unlock()
	return err
}
