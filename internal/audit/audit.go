// Package audit keeps the record of what the instance vouched for: one JSON
// object a line, fsynced before the answer it stands for leaves.
//
// Requests that arrive together share one write and one fsync.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// Types of events.
const (
	Issued   = "issued"   // a certificate
	Refused  = "refused"  // a request for a certificate
	Appended = "appended" // an entry in the log
	Started  = "started"  // the instance
	Stopped  = "stopped"
)

// Event is one line of the record.
type Event struct {
	Time    time.Time      `json:"time"` // UTC; set by Append when zero
	Type    string         `json:"type"`
	Service string         `json:"service"`
	Fields  map[string]any `json:"fields,omitempty"`
}

// Func records an event. It returns after the event is on disk; whoever gets an
// error must withhold what the event stands for.
type Func func(ctx context.Context, e Event) error

// ErrClosed is returned for events that come after Close.
var ErrClosed = errors.New("audit record is closed")

// maxBatch bounds the bytes that one write gathers.
const maxBatch = 1 << 20

// Log is an append-only file of events. It is safe for concurrent use.
type Log struct {
	file *os.File
	size int64 // bytes that are durable

	mu      sync.Mutex
	waiting *batch
	failed  error
	closed  bool
	writing sync.WaitGroup
	turn    chan struct{} // holds one token: the right to write
}

type batch struct {
	data []byte
	done chan struct{}
	err  error
}

// Create makes an empty record. It refuses to overwrite one.
func Create(path string) error {
	return durable.WriteNew(path, nil, 0o600)
}

// Open continues an existing record. A torn last line, left by a power cut in
// the middle of a write whose answer never left, is cut off.
func Open(path string) (*Log, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("opening audit record: %w", err)
	}
	size, err := wholeLines(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading audit record: %w", err), f.Close())
	}
	info, err := f.Stat()
	if err == nil && info.Size() > size {
		if err = f.Truncate(size); err == nil {
			err = f.Sync()
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening audit record %s: %w", filepath.Base(path), err), f.Close())
	}
	l := &Log{file: f, size: size, turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l, nil
}

// wholeLines is the offset behind the last line feed.
func wholeLines(f *os.File) (int64, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	buf := make([]byte, 64<<10)
	for end > 0 {
		n := min(int64(len(buf)), end)
		if _, err := f.ReadAt(buf[:n], end-n); err != nil {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if buf[i] == '\n' {
				return end - n + i + 1, nil
			}
		}
		end -= n
	}
	return 0, nil
}

// Append implements Func. An error means that the event is not known to be on
// disk; after an I/O error every later call fails too, because the state of the
// file is unknown.
func (l *Log) Append(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding audit event: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}

	l.mu.Lock()
	if l.failed != nil || l.closed {
		err := errors.Join(l.failed, closedError(l.closed))
		l.mu.Unlock()
		return err
	}
	leader := l.waiting == nil
	if leader {
		l.waiting = &batch{done: make(chan struct{})}
	}
	b := l.waiting
	b.data = append(append(b.data, line...), '\n')
	if len(b.data) >= maxBatch {
		l.waiting = nil // full: the next event opens another
	}
	l.writing.Add(1)
	l.mu.Unlock()
	defer l.writing.Done()

	if !leader {
		<-b.done
		return b.err
	}
	<-l.turn // whoever writes now lets others join this batch meanwhile
	l.mu.Lock()
	if l.waiting == b {
		l.waiting = nil
	}
	err = l.failed
	l.mu.Unlock()
	if err == nil {
		err = l.write(b.data)
	}
	b.err = err
	close(b.done)
	l.turn <- struct{}{}
	return err
}

func (l *Log) write(data []byte) error {
	_, err := l.file.WriteAt(data, l.size)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		err = fmt.Errorf("writing audit record: %w", err)
		l.mu.Lock()
		l.failed = err
		l.mu.Unlock()
		return err
	}
	l.size += int64(len(data))
	return nil
}

// Err is the I/O error that ended the record's usefulness, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Close waits for events under way and closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.writing.Wait()
	return l.file.Close()
}

func closedError(closed bool) error {
	if closed {
		return ErrClosed
	}
	return nil
}
