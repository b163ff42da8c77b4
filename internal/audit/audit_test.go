package audit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

func open(t *testing.T, path string) *Log {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func lines(t *testing.T, path string) []Event {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var events []Event
	for s := bufio.NewScanner(f); s.Scan(); {
		var e Event
		if err := json.Unmarshal(s.Bytes(), &e); err != nil {
			t.Fatalf("line %d: %v", len(events)+1, err)
		}
		events = append(events, e)
	}
	return events
}

func TestConcurrentAppendsAreAllThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	if err := Create(path); err == nil {
		t.Fatal("an existing record was made anew")
	}
	l := open(t, path)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 25 {
				if err := l.Append(t.Context(), Event{Type: Issued, Fields: map[string]any{"id": fmt.Sprintf("%d/%d", w, i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[any]bool{}
	for _, e := range lines(t, path) {
		seen[e.Fields["id"]] = true
	}
	if len(seen) != 400 {
		t.Errorf("%d events on disk, want 400", len(seen))
	}
}

func TestTornLineIsCutOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	if err := l.Append(t.Context(), Event{Type: Started}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	f, _ := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	f.WriteString(`{"type":"iss`)
	f.Close()

	l = open(t, path)
	if err := l.Append(t.Context(), Event{Type: Stopped}); err != nil {
		t.Fatal(err)
	}
	got := lines(t, path)
	if len(got) != 2 || got[0].Type != Started || got[1].Type != Stopped {
		t.Errorf("%+v", got)
	}
}

func TestFailureStopsEverythingAfter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	l.file.Close() // the next write fails as on a broken disk
	if err := l.Append(t.Context(), Event{Type: Issued}); err == nil {
		t.Fatal("an event that could not be written was acknowledged")
	}
	if err := l.Append(t.Context(), Event{Type: Issued}); err == nil || l.Err() == nil {
		t.Fatal("the record went on after an I/O error")
	}
}

func TestClosedAndCancelled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	l := open(t, path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, Event{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	l.Close()
	if err := l.Append(t.Context(), Event{}); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing record was opened")
	}
}

func BenchmarkAppend(b *testing.B) {
	path := filepath.Join(b.TempDir(), "audit.jsonl")
	if err := Create(path); err != nil {
		b.Fatal(err)
	}
	l, err := Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(b.Context(), Event{Type: Issued, Service: "fulcio", Fields: map[string]any{"serial": "01"}}); err != nil {
				b.Error(err)
			}
		}
	})
}
