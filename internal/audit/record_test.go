package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/audit"
)

const instance = "0123456789abcdef0123456789abcdef"

func create(t testing.TB, segmentBytes int64) audit.Options {
	t.Helper()
	o := audit.Options{Dir: t.TempDir(), Instance: instance, SegmentBytes: segmentBytes}
	if err := audit.Create(o); err != nil {
		t.Fatal(err)
	}
	return o
}

func open(t testing.TB, o audit.Options) *audit.Log {
	t.Helper()
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func add(t testing.TB, l *audit.Log, typ string, id any) {
	t.Helper()
	if err := l.Append(t.Context(), audit.Event{Type: typ, Service: "test", Fields: map[string]any{"id": id}}); err != nil {
		t.Fatal(err)
	}
}

// read is every record of an intact chain.
func read(t testing.TB, o audit.Options) ([]audit.Record, audit.Summary) {
	t.Helper()
	var records []audit.Record
	sum, err := audit.Read(t.Context(), o.Dir, o.Instance, func(r *audit.Record) error {
		records = append(records, *r)
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return records, sum
}

func TestConcurrentAppendsAreAllThere(t *testing.T) {
	o := create(t, 8<<10) // many files
	if err := audit.Create(o); err == nil {
		t.Fatal("an existing record was made anew")
	}
	l := open(t, o)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 25 {
				add(t, l, audit.Issued, fmt.Sprintf("%d/%d", w, i))
			}
		})
	}
	// A reader sees an intact chain at any time.
	stop, reading := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(reading)
		for {
			select {
			case <-stop:
				return
			default:
				read(t, o)
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-reading
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	records, sum := read(t, o)
	seen := map[string]bool{}
	for _, r := range records {
		if r.Type == audit.Issued {
			seen[string(r.Fields)] = true
		}
	}
	if len(seen) != 400 || sum.Head != head || sum.Segments < 5 || int(sum.Records) != 400+sum.Segments || sum.Head.Seq != sum.Records {
		t.Errorf("%d events, %+v, head %+v", len(seen), sum, head)
	}
}

// TestLinesAreReadableByAnyone: sha256sum and jq are enough to follow the chain.
func TestLinesAreReadableByAnyone(t *testing.T) {
	o := create(t, 0)
	l := open(t, o)
	add(t, l, audit.Started, "a")
	add(t, l, audit.Issued, "b")
	l.Close()
	data, err := os.ReadFile(filepath.Join(o.Dir, "audit-000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	prev := strings.Repeat("0", 64)
	lines := bytes.SplitAfter(data, []byte("\n"))
	for i, line := range lines[:len(lines)-1] {
		var r struct {
			Seq                       int
			Prev, Time, Type, Service string
			Fields                    map[string]any
		}
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		if r.Seq != i+1 || r.Prev != prev || r.Type == "" || r.Service == "" {
			t.Errorf("line %d: %s, want prev %s", i+1, line, prev)
		}
		if _, err := time.Parse(time.RFC3339, r.Time); err != nil || !strings.HasSuffix(r.Time, "Z") {
			t.Errorf("time %s: %v", r.Time, err)
		}
		if i == 0 && r.Fields["instance"] != instance {
			t.Errorf("first line: %s", line)
		}
		prev = fmt.Sprintf("%x", sha256.Sum256(line))
	}
}

func TestReopening(t *testing.T) {
	o := create(t, 2<<10)
	for i := range 40 {
		l := open(t, o)
		add(t, l, audit.Issued, i)
		if i%2 == 0 {
			add(t, l, audit.Stopped, i)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if records, sum := read(t, o); len(records) != 60+sum.Segments || sum.Segments < 4 {
		t.Errorf("%d records, %+v", len(records), sum)
	}
}

// TestTornLastLineIsCut: no write was answered for whose last byte, the line
// feed, is not there.
func TestTornLastLineIsCut(t *testing.T) {
	for _, torn := range []string{`{"seq":4,"prev":"iss`, "{", strings.Repeat("\x00", 4096)} {
		o := create(t, 0)
		l := open(t, o)
		add(t, l, audit.Issued, 1)
		add(t, l, audit.Issued, 2)
		l.Close()
		path := filepath.Join(o.Dir, "audit-000001.jsonl")
		appendTo(t, path, torn)
		if _, sum := read(t, o); sum.Torn != int64(len(torn)) || sum.Records != 3 {
			t.Errorf("%+v", sum)
		}
		l = open(t, o)
		add(t, l, audit.Issued, 3)
		l.Close()
		if _, sum := read(t, o); sum.Torn != 0 || sum.Records != 4 {
			t.Errorf("%+v", sum)
		}
	}
}

// TestTornWrites: whatever part of a write is there after a power cut,
// the record goes on from whole lines.
func TestTornWrites(t *testing.T) {
	o := create(t, 0)
	path := filepath.Join(o.Dir, "audit-000001.jsonl")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Written by another, so that the head file stays behind as in a crash.
	twin := audit.Options{Dir: t.TempDir(), Instance: instance}
	for _, name := range []string{"audit-000001.jsonl", "head.json"} {
		data, err := os.ReadFile(filepath.Join(o.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(twin.Dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, twin)
	add(t, l, audit.Issued, 1)
	add(t, l, audit.Issued, 2)
	l.Close()
	after, err := os.ReadFile(filepath.Join(twin.Dir, "audit-000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for n := len(before); n <= len(after); n++ {
		if near := min(n-len(before), len(after)-n); near > 3 && n%17 != 0 && after[n-1] != '\n' && after[n-2] != '\n' {
			continue // enough of the middle
		}
		if err := os.WriteFile(path, after[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		whole := uint64(bytes.Count(after[:n], []byte("\n")))
		l, err := audit.Open(o)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if h := l.Head(); h.Seq != whole {
			t.Errorf("%d bytes: head %d, want %d", n, h.Seq, whole)
		}
		os.WriteFile(filepath.Join(o.Dir, "keep"), nil, 0o600) // unknown files are left alone
		// Closed without a head file newer than the next round's lines.
		head, err := os.ReadFile(filepath.Join(o.Dir, "head.json"))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if err := os.WriteFile(filepath.Join(o.Dir, "head.json"), head, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrashWhileAFileIsBegun: the next file is there, empty or in part.
func TestCrashWhileAFileIsBegun(t *testing.T) {
	for _, part := range []string{"", `{"seq":3,"pre`} {
		o := create(t, 0)
		l := open(t, o)
		add(t, l, audit.Issued, 1)
		l.Close()
		if err := os.WriteFile(filepath.Join(o.Dir, "audit-000002.jsonl"), []byte(part), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, sum := read(t, o); sum.Records != 2 {
			t.Errorf("%+v", sum)
		}
		l = open(t, o)
		add(t, l, audit.Issued, 2)
		l.Close()
		l = open(t, o)
		add(t, l, audit.Issued, 3)
		l.Close()
		if _, sum := read(t, o); sum.Records != 5 || sum.Segments != 2 {
			t.Errorf("%+v", sum)
		}
	}
}

func TestClosedAndCancelled(t *testing.T) {
	l := open(t, create(t, 0))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, audit.Event{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := l.Append(t.Context(), audit.Event{Fields: map[string]any{"x": strings.Repeat("x", 64<<10)}}); err == nil {
		t.Error("an event too large for a line was taken")
	}
	if err := l.Append(t.Context(), audit.Event{Fields: map[string]any{"x": func() {}}}); err == nil {
		t.Error("an event that is no JSON was taken")
	}
	if err := errors.Join(l.Check(t.Context()), l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := l.Append(t.Context(), audit.Event{}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestWhatIsNotThereIsNotMade(t *testing.T) {
	for name, dir := range map[string]string{"no folder": filepath.Join(t.TempDir(), "none"), "empty folder": t.TempDir()} {
		o := audit.Options{Dir: dir, Instance: instance}
		if _, err := audit.Open(o); !errors.Is(err, audit.ErrMissing) {
			t.Errorf("%s: open: %v", name, err)
		}
		if _, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil); !errors.Is(err, audit.ErrMissing) {
			t.Errorf("%s: read: %v", name, err)
		}
		if _, err := audit.Adopt(o); !errors.Is(err, audit.ErrMissing) {
			t.Errorf("%s: adopt: %v", name, err)
		}
	}
	dir := t.TempDir()
	appendTo(t, filepath.Join(dir, "audit.jsonl"), "{}\n")
	if _, err := audit.Open(audit.Options{Dir: dir, Instance: instance}); !errors.Is(err, audit.ErrMissing) || !strings.Contains(err.Error(), "without a chain") {
		t.Errorf("unchained: %v", err)
	}
}

func TestUnusable(t *testing.T) {
	l := audit.Unusable(errDamage)
	if err := l.Append(t.Context(), audit.Event{}); !errors.Is(err, errDamage) {
		t.Errorf("append: %v", err)
	}
	if err := l.Check(t.Context()); !errors.Is(err, errDamage) {
		t.Errorf("check: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

var errDamage = errors.New("damage")

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkAppend(b *testing.B) {
	l := open(b, create(b, 0))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			add(b, l, audit.Issued, "01")
		}
	})
}

// BenchmarkOpen is a start on a full file.
func BenchmarkOpen(b *testing.B) {
	o := large(b)
	for b.Loop() {
		l, err := audit.Open(o)
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

// BenchmarkRead verifies 60 MiB.
func BenchmarkRead(b *testing.B) {
	o := large(b)
	var lines uint64
	for b.Loop() {
		sum, err := audit.Read(b.Context(), o.Dir, o.Instance, nil, nil)
		if err != nil {
			b.Fatal(err)
		}
		lines += sum.Records
	}
	b.ReportMetric(float64(lines)/b.Elapsed().Seconds(), "lines/s")
}

func large(b *testing.B) audit.Options {
	o := create(b, 0)
	l := open(b, o)
	var wg sync.WaitGroup
	for range 1000 {
		wg.Go(func() {
			for range 100 {
				add(b, l, audit.Issued, strings.Repeat("x", 400))
			}
		})
	}
	wg.Wait()
	l.Close()
	return o
}
