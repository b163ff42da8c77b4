package audit

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// opened is a log whose disk a test can replace.
func opened(t *testing.T) *Log {
	t.Helper()
	o := Options{Dir: t.TempDir(), Instance: "i"}
	if err := Create(o); err != nil {
		t.Fatal(err)
	}
	l, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := l.Append(t.Context(), Event{Type: Started}); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestFailedSyncIsTheEnd: afterwards nobody knows what is on the disk, so that
// nothing is acknowledged any more.
func TestFailedSyncIsTheEnd(t *testing.T) {
	l := opened(t)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0) // takes writes, refuses to sync
	if err != nil {
		t.Fatal(err)
	}
	kept := l.file
	defer kept.Close()
	l.file = null
	if err := l.Append(t.Context(), Event{Type: Issued}); !errors.Is(err, syscall.EINVAL) {
		t.Fatalf("an event that was not synced: %v", err)
	}
	l.file = kept
	before := l.Head()
	if err := l.Append(t.Context(), Event{Type: Issued}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("the record went on after a failed sync: %v", err)
	}
	l.mu.Lock()
	l.retried = time.Time{}
	l.mu.Unlock()
	if err := l.Check(t.Context()); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("check: %v", err)
	}
	if l.Head() != before || before.Seq != 2 {
		t.Errorf("head %+v", l.Head())
	}
}

// TestFailedWriteThatCannotBeUndone is the end as well.
func TestFailedWriteThatCannotBeUndone(t *testing.T) {
	l := opened(t)
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0) // refuses writes, and to be cut
	if err != nil {
		t.Fatal(err)
	}
	kept := l.file
	defer kept.Close()
	l.file = full
	if err := l.Append(t.Context(), Event{Type: Issued}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("an event on a full disk: %v", err)
	}
	l.file = kept
	if err := l.Append(t.Context(), Event{Type: Issued}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("the record went on: %v", err)
	}
}

// slow is a file whose disk answers when it is let.
type slow struct {
	file
	let chan struct{}
}

func (s slow) Sync() error {
	<-s.let
	return s.file.Sync()
}

// TestDiskDoesNotAnswer: who waits for a record gives up in time, and nobody
// begins to wait when it has taken too long.
func TestDiskDoesNotAnswer(t *testing.T) {
	l := opened(t)
	let := make(chan struct{})
	l.file = slow{l.file, let}
	first := make(chan error, 1)
	go func() { first <- l.Append(context.Background(), Event{Type: Issued}) }()
	begun := func() (yes bool) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.since.IsZero()
	}
	for deadline := time.Now().Add(10 * time.Second); !begun(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the write is not begun")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := l.Append(ctx, Event{Type: Issued}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("waiting: %v", err)
	}
	l.mu.Lock()
	if len(l.waiting) != 0 {
		t.Error("an event that was given up would still be written")
	}
	l.since = l.since.Add(-stallAfter - time.Second)
	l.mu.Unlock()
	if err := l.Append(t.Context(), Event{Type: Issued}); !errors.Is(err, ErrStalled) {
		t.Errorf("stalled: %v", err)
	}
	if err := l.Check(t.Context()); !errors.Is(err, ErrStalled) {
		t.Errorf("check: %v", err)
	}
	close(let) // the disk answers after all
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := errors.Join(l.Append(t.Context(), Event{Type: Issued}), l.Check(t.Context())); err != nil {
		t.Error(err)
	}
	if h := l.Head(); h.Seq != 4 {
		t.Errorf("head %+v", h)
	}
}

// TestHeadFollows without being asked, and a head that cannot be written is said.
func TestHeadFollows(t *testing.T) {
	l := opened(t)
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	follows := func() bool { h, err := readHead(headPath(l.o.Dir)); return err == nil && h == l.Head() }
	until("the head file does not follow", follows)
	if err := os.Remove(headPath(l.o.Dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(headPath(l.o.Dir)+"/x", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Event{Type: Issued}); err != nil {
		t.Fatal(err)
	}
	until("a head file that cannot be written is not said", func() bool { return l.Check(t.Context()) != nil })
	if err := os.RemoveAll(headPath(l.o.Dir)); err != nil {
		t.Fatal(err)
	}
	until("the head file does not follow again", func() bool { return follows() && l.Check(t.Context()) == nil })
}
