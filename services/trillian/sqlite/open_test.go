package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/trillian"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// closedStorage makes a storage with one tree of n leaves and closes it.
func closedStorage(t *testing.T, n int) (string, *trillian.Tree) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "logs")
	s := newStorage(t, dir, onWrite)
	tree := newTree(t, s)
	values := make([]string, n)
	for i := range values {
		values[i] = marked(i)
	}
	queue(t, s, tree, values...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, tree
}

// marked is a value that can be found in a file.
func marked(i int) string { return fmt.Sprintf("leaf %05d %s", i, strings.Repeat("v", 1000)) }

// change opens a file of the storage behind its back.
func change(t *testing.T, path, sql string) {
	t.Helper()
	c, err := openConn(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.exec(sql), c.close()); err != nil {
		t.Fatal(err)
	}
}

// flip changes a bit of the byte in the file that is as far behind mark as offset says.
func flip(t *testing.T, path string, mark []byte, offset int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, mark)
	if at < 0 {
		t.Fatalf("%q is not in %s", mark, path)
	}
	b[at+offset] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	type storageAt struct {
		dir, trees, tree string
		id               int64
	}
	for _, test := range []struct {
		name string
		do   func(*testing.T, storageAt)
		want error
	}{
		{"missing folder", func(t *testing.T, at storageAt) { must(t, os.RemoveAll(at.dir)) }, ErrMissing},
		{"missing catalogue", func(t *testing.T, at storageAt) { must(t, os.Remove(at.trees)) }, ErrMissing},
		{"missing tree", func(t *testing.T, at storageAt) { must(t, os.Remove(at.tree)) }, ErrMissing},
		{"newer tree", func(t *testing.T, at storageAt) { change(t, at.tree, "PRAGMA user_version = 99") }, ErrNewer},
		{"newer catalogue", func(t *testing.T, at storageAt) { change(t, at.trees, "PRAGMA user_version = 99") }, ErrNewer},
		{"unfinished tree", func(t *testing.T, at storageAt) { change(t, at.tree, "PRAGMA user_version = 0") }, ErrForeign},
		{"another application's", func(t *testing.T, at storageAt) { change(t, at.tree, "PRAGMA application_id = 1") }, ErrForeign},
		{"catalogue as tree", func(t *testing.T, at storageAt) {
			b, err := os.ReadFile(at.trees)
			must(t, err)
			must(t, os.WriteFile(at.tree, b, 0o600))
		}, ErrForeign},
		{"another tree's", func(t *testing.T, at storageAt) {
			must(t, os.Remove(at.tree))
			must(t, createTree(at.tree, at.id+1))
		}, ErrForeign},
		{"not a database", func(t *testing.T, at storageAt) {
			must(t, os.WriteFile(at.tree, bytes.Repeat([]byte("text\n"), 5000), 0o600))
		}, ErrForeign},
		{"empty file", func(t *testing.T, at storageAt) { must(t, os.Truncate(at.tree, 0)) }, ErrForeign},
		{"another journal", func(t *testing.T, at storageAt) { change(t, at.tree, "PRAGMA journal_mode = DELETE") }, ErrForeign},
		{"cut short", func(t *testing.T, at storageAt) { must(t, os.Truncate(at.tree, 3*pageSize)) }, ErrDamaged},
		{"no root", func(t *testing.T, at storageAt) { change(t, at.tree, "UPDATE nodes SET root = x'00'") }, ErrDamaged},
		{"catalogue of nonsense", func(t *testing.T, at storageAt) { change(t, at.trees, "UPDATE trees SET tree = x'ffff'") }, ErrDamaged},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, tree := closedStorage(t, 64)
			at := storageAt{dir: dir, trees: treesPath(dir), tree: treePath(dir, tree.TreeId), id: tree.TreeId}
			test.do(t, at)
			before := listing(t, dir)
			s, err := Open(t.Context(), dir, onWrite)
			if err == nil {
				must(t, s.Close())
			}
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("%v, want %v in %s", err, test.want, dir)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("the folder had %s and has %s", before, after)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing is what is in a folder, without what SQLite leaves beside a file that it was asked about.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), "-wal") && !strings.HasSuffix(e.Name(), "-shm") {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

func TestLocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	s := newStorage(t, dir, Options{})
	if _, err := Open(t.Context(), dir, Options{}); !errors.Is(err, ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := Create(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("created while open: %v", err)
	}
	must(t, s.Close())
	if err := Create(dir); !errors.Is(err, ErrExists) {
		t.Errorf("created again: %v", err)
	}
	openStorage(t, dir, Options{})
}

func TestModes(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "logs")
	s := newStorage(t, dir, onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a")
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) < 4 {
		t.Errorf("%d files", len(entries))
	}
	for _, e := range entries {
		if st, err := e.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), st.Mode(), err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("folder: %v, %v", st.Mode(), err)
	}
}

// A user for whom the folder is read-only gets told so. The superuser may write anywhere, so the test is another user's process.
func TestReadOnlyFolder(t *testing.T) {
	dir, _ := closedStorage(t, 1)
	for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		must(t, os.Chmod(at, 0o755))
	}
	must(t, os.Chmod(dir, 0o555))
	binary := filepath.Join(filepath.Dir(dir), "test")
	b, err := os.ReadFile(os.Args[0])
	must(t, err)
	must(t, os.WriteFile(binary, b, 0o755))
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), "SIGBOX_TEST_OPEN="+dir)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), ErrReadOnly.Error()) {
		t.Errorf("%v: %s", err, out)
	}
}

// justOpen is the process that TestReadOnlyFolder starts.
func justOpen(dir string) error {
	s, err := Open(context.Background(), dir, onWrite)
	if err != nil {
		return err
	}
	return s.Close()
}

// Damage in what is read later is found when it is read, and said to be damage.
func TestDamageFoundWhenRead(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*testing.T, string)
	}{
		{"a bit of a value", func(t *testing.T, path string) { flip(t, path, []byte(marked(7)), 500) }},
		{"a page of leaves", func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			must(t, err)
			page := bytes.Index(b, []byte(marked(7))) / pageSize * pageSize
			copy(b[page:], bytes.Repeat([]byte{0xff}, 64))
			must(t, os.WriteFile(path, b, 0o600))
		}},
		{"a leaf gone", func(t *testing.T, path string) { change(t, path, "DELETE FROM leaves WHERE idx = 7") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, tree := closedStorage(t, 64)
			test.do(t, treePath(dir, tree.TreeId))
			s := openStorage(t, dir, onWrite)
			snap, err := s.SnapshotForTree(t.Context(), tree)
			must(t, err)
			if _, err := snap.GetLeavesByRange(t.Context(), 7, 1); status.Code(err) != codes.DataLoss {
				t.Errorf("reading leaf 7: %v", err)
			}
			if leaves, err := snap.GetLeavesByRange(t.Context(), 63, 1); err != nil || len(leaves) != 1 {
				t.Errorf("reading leaf 63: %v", err)
			}
		})
	}
}

func TestClosed(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a", "b")
	snap, err := s.SnapshotForTree(t.Context(), tree)
	must(t, err)
	stop := make(chan struct{})
	writing := make(chan error)
	go func() {
		for i := 0; ; i++ {
			if err := queueOne(s, tree, fmt.Sprint("while closing ", i)); err != nil {
				writing <- err
				return
			}
			if i == 10 {
				close(stop)
			}
		}
	}()
	<-stop
	must(t, s.Close())
	if err := <-writing; status.Code(err) != codes.Unavailable {
		t.Errorf("a writer: %v", err)
	}
	_, rangeErr := snap.GetLeavesByHash(t.Context(), [][]byte{make([]byte, 32)}, false)
	_, adminErr := createLog(s)
	for name, err := range map[string]error{
		"reading": rangeErr, "creating": adminErr, "writing": queueOne(s, tree, "x"), "accessible": s.CheckDatabaseAccessible(t.Context()),
	} {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, s.Close())
}

func TestDeletedTreeGoes(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, onWrite)
	tree, kept := newTree(t, s), newTree(t, s)
	queue(t, s, tree, "a")
	must(t, deleteTree(s, tree))
	if got := listing(t, dir); got != fmt.Sprintf("tree-%d.db trees.db", kept.TreeId) {
		t.Errorf("left: %s", got)
	}
	if err := queueOne(s, tree, "b"); status.Code(err) != codes.NotFound {
		t.Errorf("writing to it: %v", err)
	}
	must(t, s.Close())
	s = openStorage(t, dir, onWrite)
	queue(t, s, kept, "c")
}

// The write-ahead log stays within its bound however much is written, while somebody is always reading and a snapshot is kept all along.
func TestWALIsBounded(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	x := mustTree(t, s, tree)
	queue(t, s, tree, marked(0), marked(1))
	kept, err := s.SnapshotForTree(t.Context(), tree)
	must(t, err)

	stop := make(chan struct{})
	readers := make(chan error, 3)
	for range cap(readers) {
		go func() {
			for {
				select {
				case <-stop:
					readers <- nil
					return
				default:
				}
				// From the file: two of many leaves, too far back to be kept in memory.
				if err := x.read(context.Background(), func(r *reads) error {
					_, err := r.leavesFrom(&s.opts, 0, 2)
					return err
				}); err != nil {
					readers <- err
					return
				}
			}
		}()
	}
	const leafSize = 64 << 10
	largest, written := int64(0), 0
	for i := 0; written < 2*hardWAL; i++ {
		must(t, queueOne(s, tree, fmt.Sprint(i, strings.Repeat("w", leafSize))))
		written += leafSize
		st, err := os.Stat(x.path + "-wal")
		must(t, err)
		largest = max(largest, st.Size())
	}
	close(stop)
	for range cap(readers) {
		must(t, <-readers)
	}
	if largest > hardWAL+maxGroupBytes {
		t.Errorf("the write-ahead log grew to %d MiB", largest>>20)
	}
	t.Logf("%d MiB written, at most %d MiB in the write-ahead log", written>>20, largest>>20)
	if root := rootOf(t, kept); root.TreeSize != 2 {
		t.Errorf("the snapshot is of size %d", root.TreeSize)
	}
	leaves, err := kept.GetLeavesByRange(t.Context(), 0, 100)
	if err != nil || len(leaves) != 2 {
		t.Errorf("the snapshot has %d leaves, %v", len(leaves), err)
	}
	checkTree(t, s, tree)

	caches := 0
	conns := []*conn{x.writer.c, x.checkpointer.c}
	for len(x.free) > 0 {
		conns = append(conns, (<-x.free).c)
	}
	for _, c := range conns {
		used := cacheUsed(c)
		if used > 4<<20 {
			t.Errorf("a connection's page cache is %d bytes", used)
		}
		caches += used
	}
	if caches > 7<<20 {
		t.Errorf("the page caches are %d bytes", caches)
	}
	if x.recent.bytes > keptLeafBytes || len(x.recent.leaves) > keptLeaves || len(x.recent.index) != len(x.recent.leaves) {
		t.Errorf("%d bytes of %d recent leaves are kept, %d indexed", x.recent.bytes, len(x.recent.leaves), len(x.recent.index))
	}
	for _, c := range conns[2:] {
		must(t, c.close())
	}
}

// A writer that finds the log at its bound moves it itself, before anybody writes again.
func TestWriterMovesWALAtItsBound(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	x := mustTree(t, s, tree)
	queue(t, s, tree, "a")
	must(t, x.acquire(t.Context()))
	if x.walPages == 0 {
		t.Error("nothing was counted")
	}
	x.walPages = hardWAL / pageSize
	x.yield()
	must(t, x.acquire(t.Context()))
	defer x.yield()
	if x.walPages != 0 {
		t.Errorf("%d pages are left", x.walPages)
	}
}

func TestChunkCacheIsBounded(t *testing.T) {
	var c chunkCache
	for no := range uint64(3 * keptChunks) {
		c.add(no, nil)
		c.add(no, nil)
		c.get(0)
	}
	if len(c.byNo) != keptChunks || c.order.Len() != keptChunks {
		t.Errorf("%d chunks kept, %d in order", len(c.byNo), c.order.Len())
	}
	if c.byNo[0] == nil || c.byNo[3*keptChunks-1] == nil || c.byNo[1] != nil {
		t.Error("not the most recently used ones are kept")
	}
}

func TestRecentLeaves(t *testing.T) {
	var r recentLeaves
	leaf := func(i int) *trillian.LogLeaf {
		l := newLeaf(fmt.Sprint(i))
		l.LeafIndex = int64(i)
		return l
	}
	for i := range 3 * keptLeaves {
		r.add([]*trillian.LogLeaf{leaf(i)})
	}
	first, end := int64(2*keptLeaves), int64(3*keptLeaves)
	for _, test := range []struct {
		start, end int64
		want       int
	}{{first, end, keptLeaves}, {first - 1, end, 0}, {first, end + 1, 0}, {end - 1, end, 1}, {0, 1, 0}} {
		if got := r.between(test.start, test.end); len(got) != test.want {
			t.Errorf("%d to %d: %d leaves, want %d", test.start, test.end, len(got), test.want)
		}
	}
	if l := r.byHash(leaf(int(first)).MerkleLeafHash); l == nil || l.LeafIndex != first {
		t.Errorf("by hash: %v", l)
	}
	if l := r.byHash(leaf(0).MerkleLeafHash); l != nil {
		t.Errorf("a forgotten one: %v", l)
	}
	// A gap starts anew.
	r.add([]*trillian.LogLeaf{leaf(int(end) + 5)})
	if r.between(end-1, end) != nil || len(r.between(end+5, end+6)) != 1 || len(r.index) != 1 {
		t.Error("leaves on both sides of a gap")
	}
}

func TestAnswersAreBounded(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	var values []string
	for i := range maxRangeLeaves + 10 {
		values = append(values, fmt.Sprint(i))
	}
	queue(t, s, tree, values...)
	for i := range 4 {
		// Two megabytes each, with the extra data.
		queue(t, s, tree, fmt.Sprint(i, strings.Repeat("big", 350_000)))
	}
	snap, err := s.SnapshotForTree(t.Context(), tree)
	must(t, err)
	for _, test := range []struct {
		start int64
		want  int
	}{{0, maxRangeLeaves}, {maxRangeLeaves + 10, 2}} {
		leaves, err := snap.GetLeavesByRange(t.Context(), test.start, 1<<40)
		if err != nil || len(leaves) != test.want {
			t.Errorf("from %d: %d leaves, %v, want %d", test.start, len(leaves), err, test.want)
		}
	}
	checkTree(t, s, tree)
}

func TestQueueTimesAreKept(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, onWrite)
	tree := newTree(t, s)
	at := time.Now()
	_, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf("a")}, at)
	must(t, err)
	for range 2 {
		snap, err := s.SnapshotForTree(t.Context(), tree)
		must(t, err)
		leaves, err := snap.GetLeavesByRange(t.Context(), 0, 1)
		must(t, err)
		if got := leaves[0].QueueTimestamp.AsTime(); !got.Equal(at) {
			t.Errorf("queued at %v, want %v", got, at)
		}
		if got := leaves[0].IntegrateTimestamp.AsTime(); got.Before(at) {
			t.Errorf("integrated at %v, before %v", got, at)
		}
		must(t, s.Close())
		s = openStorage(t, dir, onWrite)
	}
}
