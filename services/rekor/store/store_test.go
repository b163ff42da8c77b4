package store

import (
	"bufio"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// writeUntilKilled makes the test binary a writer that some test kills.
const writeUntilKilled = "SIGBOX_STORE_TEST_WRITE"

func TestMain(m *testing.M) {
	if path := os.Getenv(writeUntilKilled); path != "" {
		fmt.Fprintln(os.Stderr, writeForever(path))
		os.Exit(1)
	}
	os.Exit(pgtest.Main(m))
}

// anyStore is what the stores have in common.
type anyStore interface {
	Put(ctx context.Context, r Record) error
	Any(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error)
	All(ctx context.Context, criteria []Criterion, limit int) ([]EntryID, error)
	Attestation(ctx context.Context, key string) ([]byte, error)
	Close() error
}

// onEngines runs a test on an empty store of each kind, which it may open
// several times, one after the other.
func onEngines(t *testing.T, test func(t *testing.T, open func(*testing.T) anyStore)) {
	t.Run("sqlite", func(t *testing.T) {
		path := create(t)
		test(t, func(t *testing.T) anyStore { return open(t, path) })
	})
	t.Run("postgres", func(t *testing.T) {
		pool, err := postgres.Open(t.Context(), pgtest.Database(t), postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		if err := postgres.Create(t.Context(), pool, []postgres.Part{Migrations}); err != nil {
			t.Fatal(err)
		}
		test(t, func(*testing.T) anyStore { return OpenPostgres(pool) })
	})
}

func entryID(n int) EntryID {
	var id EntryID
	binary.BigEndian.PutUint64(id[:8], 7)
	sum := sha256.Sum256(fmt.Appendf(nil, "leaf %d", n))
	copy(id[8:], sum[:])
	return id
}

func create(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "index.db")
	if err := Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func put(t testing.TB, s anyStore, r Record) {
	t.Helper()
	if err := s.Put(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

func TestSearch(t *testing.T) { onEngines(t, testSearch) }

func testSearch(t *testing.T, open func(*testing.T) anyStore) {
	s := open(t)
	put(t, s, Record{Entry: entryID(1), Keys: []string{"sha256:aa", "Alice@Example.com", "key1"}})
	put(t, s, Record{Entry: entryID(2), Keys: []string{"sha256:bb", "alice@example.com", "key2"}})
	put(t, s, Record{Entry: entryID(3), Keys: []string{"sha256:aa", "bob@example.com", "key2"}})
	put(t, s, Record{Entry: entryID(3), Keys: []string{"sha256:aa", "bob@example.com", "key2"}}) // again

	check := func(t *testing.T, s anyStore) {
		for _, c := range []struct {
			name     string
			find     func(context.Context, []Criterion, int) ([]EntryID, error)
			criteria []Criterion
			want     []int
		}{
			{"one key", s.Any, []Criterion{{"sha256:aa"}}, []int{1, 3}},
			{"no such key", s.Any, []Criterion{{"sha256:cc"}}, nil},
			{"case is ignored", s.Any, []Criterion{{"ALICE@example.com"}}, []int{1, 2}},
			{"any of two", s.Any, []Criterion{{"sha256:bb"}, {"bob@example.com"}}, []int{2, 3}},
			{"any, each entry once", s.Any, []Criterion{{"sha256:aa"}, {"bob@example.com"}}, []int{1, 3}},
			{"any of nothing", s.Any, nil, nil},
			{"all of two", s.All, []Criterion{{"sha256:aa"}, {"bob@example.com"}}, []int{3}},
			{"all with spellings", s.All, []Criterion{{"sha256:aa", "sha256:bb"}, {"key1", "key2"}, {"alice@example.com"}}, []int{1, 2}},
			{"all, one unmet", s.All, []Criterion{{"sha256:aa"}, {"carol@example.com"}}, nil},
			{"all of nothing", s.All, nil, nil},
		} {
			t.Run(c.name, func(t *testing.T) {
				got, err := c.find(t.Context(), c.criteria, 10)
				if err != nil {
					t.Fatal(err)
				}
				var want []EntryID
				for _, n := range c.want {
					want = append(want, entryID(n))
				}
				byBytes := func(a, b EntryID) int { return slices.Compare(a[:], b[:]) }
				slices.SortFunc(got, byBytes)
				slices.SortFunc(want, byBytes)
				if !slices.Equal(got, want) {
					t.Errorf("got %x, want %x", got, want)
				}
			})
		}
	}
	t.Run("at once", func(t *testing.T) { check(t, s) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	t.Run("after reopening", func(t *testing.T) { check(t, open(t)) })
}

func TestTooManyResults(t *testing.T) { onEngines(t, testTooManyResults) }

func testTooManyResults(t *testing.T, open func(*testing.T) anyStore) {
	s := open(t)
	for n := range 5 {
		put(t, s, Record{Entry: entryID(n), Keys: []string{"ci@example.com"}})
	}
	if got, err := s.Any(t.Context(), []Criterion{{"ci@example.com"}}, 5); err != nil || len(got) != 5 {
		t.Errorf("with just enough room: %d entries, error %v", len(got), err)
	}
	if _, err := s.Any(t.Context(), []Criterion{{"ci@example.com"}}, 4); !errors.Is(err, ErrTooMany) {
		t.Errorf("with too little room: error %v, want ErrTooMany", err)
	}
}

func TestAttestations(t *testing.T) { onEngines(t, testAttestations) }

func testAttestations(t *testing.T, open func(*testing.T) anyStore) {
	s := open(t)
	put(t, s, Record{Entry: entryID(1), AttestationKey: "sha256:aa", Attestation: []byte("statement")})
	got, err := s.Attestation(t.Context(), "sha256:aa")
	if err != nil || string(got) != "statement" {
		t.Errorf("got %q, error %v", got, err)
	}
	if _, err := s.Attestation(t.Context(), "sha256:bb"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	set := func(pragma string) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", dsn(path, writerPragmas))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), pragma); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  string
	}{
		{"a missing file", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		{"an empty file", func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a search index"},
		{"something else", func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytesOf("not a database", 4096), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a database"},
		{"a newer schema", set("PRAGMA user_version = 2"), "newer program"},
		{"no schema", set("PRAGMA user_version = 0"), "schema 0"},
		{"another's database", set("PRAGMA application_id = 1"), "not a search index"},
		{"a locked file", func(t *testing.T, path string) { open(t, path) }, "in use by another process"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := create(t)
			c.spoil(t, path)
			s, err := Open(t.Context(), path)
			if err == nil {
				t.Fatal(errors.Join(errors.New("opened"), s.Close()))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want it to say %q", err, c.want)
			}
			if _, err := os.Stat(path); c.name == "a missing file" && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a missing file was made: %v", err)
			}
		})
	}
}

func bytesOf(s string, n int) []byte { return []byte(strings.Repeat(s, n/len(s)+1))[:n] }

func TestCreateRefusesToOverwrite(t *testing.T) {
	path := create(t)
	s := open(t, path)
	put(t, s, Record{Entry: entryID(1), Keys: []string{"a"}})
	if err := Create(t.Context(), path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	if got, err := s.Any(t.Context(), []Criterion{{"a"}}, 1); err != nil || len(got) != 1 {
		t.Errorf("after that: %d entries, error %v", len(got), err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
}

// A writer finds its own record at once.
func TestConcurrentWriters(t *testing.T) { onEngines(t, testConcurrentWriters) }

func testConcurrentWriters(t *testing.T, open func(*testing.T) anyStore) {
	s := open(t)
	const writers, each = 32, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				key := fmt.Sprintf("writer %d record %d", w, n)
				r := Record{Entry: entryID(w*each + n), Keys: []string{key, "everyone"}, AttestationKey: key, Attestation: []byte(key)}
				if err := s.Put(t.Context(), r); err != nil {
					t.Error(err)
					return
				}
				if got, err := s.All(t.Context(), []Criterion{{key}, {"everyone"}}, 1); err != nil || len(got) != 1 || got[0] != r.Entry {
					t.Errorf("%s: got %x, error %v", key, got, err)
				}
				if body, err := s.Attestation(t.Context(), key); err != nil || string(body) != key {
					t.Errorf("%s: attestation %q, error %v", key, body, err)
				}
			}
		})
	}
	wg.Wait()
	if got, err := s.Any(t.Context(), []Criterion{{"everyone"}}, writers*each); err != nil || len(got) != writers*each {
		t.Errorf("%d entries, error %v", len(got), err)
	}
}

// A full disk refuses records and nothing more: there may be space again.
func TestFull(t *testing.T) {
	s := open(t, create(t))
	limit := func(pages int) {
		if _, err := s.writer.ExecContext(t.Context(), "PRAGMA max_page_count = "+strconv.Itoa(pages)); err != nil {
			t.Fatal(err)
		}
	}
	put(t, s, Record{Entry: entryID(1), Keys: []string{"before"}})
	limit(1) // SQLite takes the present size where that is more
	big := Record{Entry: entryID(2), Keys: []string{"while"}, AttestationKey: "big", Attestation: make([]byte, 64<<10)}
	if err := s.Put(t.Context(), big); !errors.Is(err, ErrFull) {
		t.Fatalf("error %v, want ErrFull", err)
	}
	if s.Err() != nil {
		t.Fatalf("a full disk ended the store: %v", s.Err())
	}
	for key, want := range map[string]int{"before": 1, "while": 0} {
		if got, err := s.Any(t.Context(), []Criterion{{key}}, 1); err != nil || len(got) != want {
			t.Errorf("%s: %d entries, error %v", key, len(got), err)
		}
	}
	limit(1 << 30)
	put(t, s, big)
}

// After an I/O error nobody knows what is on disk, so the store takes no more.
func TestWriteErrorIsFatal(t *testing.T) {
	s := open(t, create(t))
	put(t, s, Record{Entry: entryID(1), Keys: []string{"before"}})
	if err := s.writer.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Put(t.Context(), Record{Entry: entryID(2), Keys: []string{"after"}}); err == nil {
			t.Fatal("acknowledged a record that it could not write")
		}
	}
	select {
	case <-s.Failed():
	default:
		t.Error("did not say that it failed")
	}
	if s.Err() == nil {
		t.Error("has no error to show")
	}
}

func TestPutAfterClose(t *testing.T) {
	s := open(t, create(t))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), Record{}); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v, want ErrClosed", err)
	}
}

func TestPutGivesUpWithItsCaller(t *testing.T) {
	s := open(t, create(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, Record{Entry: entryID(1), Keys: []string{"a"}}); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled or none", err)
	}
}

// The budget is the whole system's: 12 KB on disk for a signature.
func TestSizeOnDisk(t *testing.T) {
	path := create(t)
	s := open(t, path)
	const entries = 10_000
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := w; n < entries; n += 16 {
				r := Record{Entry: entryID(n), Keys: []string{
					fmt.Sprintf("key %d", n), fmt.Sprintf("payload %d", n), fmt.Sprintf("artifact %d", n), "ci@example.com",
				}}
				if err := s.Put(t.Context(), r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wal, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if wal.Size() > 20<<20 {
		t.Errorf("the WAL grew to %d bytes", wal.Size())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	each := info.Size() / entries
	t.Logf("%d bytes an entry with four keys; the WAL held %d", each, wal.Size())
	if each > 512 {
		t.Errorf("%d bytes an entry, want 512 or fewer", each)
	}
}

// writeForever puts records and prints each number after it is acknowledged.
func writeForever(path string) error {
	s, err := Open(context.Background(), path)
	if err != nil {
		return err
	}
	var print sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := os.Getpid()<<24 + w; ; n += 8 { // each writer has its own numbers
				if err := s.Put(context.Background(), Record{Entry: entryID(n), Keys: []string{strconv.Itoa(n), "all"}}); err != nil {
					return
				}
				print.Lock()
				fmt.Println(n)
				print.Unlock()
			}
		})
	}
	wg.Wait()
	return s.Err()
}

// What was acknowledged is there after a kill.
func TestKilledWriter(t *testing.T) {
	path := create(t)
	var acknowledged []string
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), writeUntilKilled+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 200 && lines.Scan(); n++ {
			acknowledged = append(acknowledged, lines.Text())
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // what it said before it died counts too
			acknowledged = append(acknowledged, lines.Text())
		}
		_ = cmd.Wait() // it says that it was killed
		if len(acknowledged) < 200*(round+1) {
			t.Fatalf("the writer acknowledged %d records in %d rounds", len(acknowledged), round+1)
		}
		s := open(t, path)
		for _, key := range acknowledged {
			n, err := strconv.Atoi(key)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.All(t.Context(), []Criterion{{key}, {"all"}}, 1); err != nil || len(got) != 1 || got[0] != entryID(n) {
				t.Fatalf("round %d: record %s: got %x, error %v", round, key, got, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	s := open(b, create(b))
	var mu sync.Mutex
	next := 0
	b.SetParallelism(16)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			n := next
			next++
			mu.Unlock()
			r := Record{Entry: entryID(n), Keys: []string{fmt.Sprintf("key %d", n), "ci@example.com", fmt.Sprintf("artifact %d", n)}}
			if err := s.Put(b.Context(), r); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
