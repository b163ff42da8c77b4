package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// swapped puts another file under every descriptor this process has of path, while f runs.
func swapped(t *testing.T, path, other string, f func()) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	with, err := os.OpenFile(other, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer with.Close()
	kept := make(map[int]int)
	for _, link := range links {
		if to, err := os.Readlink(link); err != nil || to != path {
			continue
		}
		var fd int
		if _, err := fmt.Sscan(filepath.Base(link), &fd); err != nil {
			t.Fatal(err)
		}
		if kept[fd], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(int(with.Fd()), fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
	}
	if len(kept) == 0 {
		t.Fatalf("%s is not open", path)
	}
	defer func() {
		for fd, was := range kept {
			if err := errors.Join(unix.Dup3(was, fd, unix.O_CLOEXEC), unix.Close(was)); err != nil {
				t.Fatal(err)
			}
		}
	}()
	f()
}

func queueOne(s *Storage, tree *trillian.Tree, value string) error {
	_, err := s.QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{newLeaf(value)}, time.Now())
	return err
}

// A full disk is a refusal: nothing of the commit is left, and the log goes on when there is space.
func TestNoSpaceForCommit(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{{"on write", onWrite}, {"timed", Options{}}} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := newStorage(t, dir, test.opts)
			tree := newTree(t, s)
			queue(t, s, tree, "before")
			sequence(t, s, tree)
			x := mustTree(t, s, tree)
			// The file put in its place can not be read.
			if err := x.emptyWAL(); err != nil {
				t.Fatal(err)
			}
			was := checkTree(t, s, tree)
			swapped(t, x.path+"-wal", "/dev/full", func() {
				for i := range 3 {
					if err := queueOne(s, tree, fmt.Sprint("during ", i)); status.Code(err) != codes.ResourceExhausted {
						t.Errorf("attempt %d: %v", i, err)
					}
				}
			})
			if now := checkTree(t, s, tree); now.TreeSize != was.TreeSize {
				t.Errorf("size %d after a refused write to a tree of %d", now.TreeSize, was.TreeSize)
			}
			if err := queueOne(s, tree, "after"); err != nil {
				t.Fatalf("with space again: %v", err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openStorage(t, dir, test.opts)
			sequence(t, s, tree)
			if now := checkTree(t, s, tree); now.TreeSize != 2 {
				t.Errorf("size %d, want 2", now.TreeSize)
			}
			if err := queueOne(s, tree, "during 0"); err != nil {
				t.Errorf("the refused entry again: %v", err)
			}
		})
	}
}

// After an fsync that failed nobody knows what the disk has: nothing is acknowledged any more, by nobody.
func TestFailedSyncIsFatal(t *testing.T) {
	for _, opts := range []Options{{}, onWrite} {
		dir := t.TempDir()
		s := newStorage(t, dir, opts)
		tree, other := newTree(t, s), newTree(t, s)
		queue(t, s, tree, "before")
		x := mustTree(t, s, tree)
		swapped(t, x.path+"-wal", "/dev/null", func() {
			if err := queueOne(s, tree, "during"); status.Code(err) != codes.Unavailable {
				t.Errorf("the write: %v", err)
			}
		})
		select {
		case err := <-s.Fatal():
			if err == nil || !strings.Contains(err.Error(), "unknown") {
				t.Errorf("the reason: %v", err)
			}
		default:
			t.Error("the end of writing is not told")
		}
		for name, err := range map[string]error{
			"writing":            queueOne(s, tree, "after"),
			"the other tree":     queueOne(s, other, "after"),
			"accessible":         s.CheckDatabaseAccessible(t.Context()),
			"creating a tree":    func() error { _, err := createLog(s); return err }(),
			"reading":            func() error { _, err := s.SnapshotForTree(t.Context(), tree); return err }(),
			"reading the trees":  func() error { _, err := s.Admin().Snapshot(t.Context()); return err }(),
			"the list of active": func() error { _, err := s.GetActiveLogIDs(t.Context()); return err }(),
		} {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStorage(t, dir, opts)
		sequence(t, s, tree)
		if now := checkTree(t, s, tree); now.TreeSize < 1 || now.TreeSize > 2 {
			t.Errorf("size %d after reopening", now.TreeSize)
		}
	}
}

func TestSequencingFails(t *testing.T) {
	fail := errors.New("not today")
	var mode string
	opts := Options{HashLeaf: hashLeaf, Sequence: func(ctx context.Context, tree *trillian.Tree, bound storage.LogStorage, queued int) error {
		switch mode {
		case "before":
			return fail
		case "after":
			return errors.Join(integrate(ctx, tree, bound, queued), fail)
		case "panic":
			if err := integrate(ctx, tree, bound, queued); err != nil {
				return err
			}
			panic(fail)
		}
		return integrate(ctx, tree, bound, queued)
	}}
	s := newStorage(t, t.TempDir(), opts)
	tree := newTree(t, s)
	queue(t, s, tree, "first")
	for _, mode = range []string{"before", "after", "panic"} {
		results := queue(t, s, tree, mode, mode)
		if code(results[0]) != codes.OK || code(results[1]) != codes.AlreadyExists {
			t.Errorf("%s: %v, %v", mode, code(results[0]), code(results[1]))
		}
		if root := checkTree(t, s, tree); root.TreeSize != 1 {
			t.Errorf("%s: size %d", mode, root.TreeSize)
		}
		if results := queue(t, s, tree, mode); code(results[0]) != codes.AlreadyExists || string(results[0].Leaf.LeafValue) != mode {
			t.Errorf("%s: queued, then %v", mode, results[0])
		}
	}
	// The next write takes what was left behind with it.
	mode = ""
	queue(t, s, tree, "last")
	if root := checkTree(t, s, tree); root.TreeSize != 5 {
		t.Errorf("size %d, want 5", root.TreeSize)
	}
	if n := sequence(t, s, tree); n != 0 {
		t.Errorf("%d leaves left", n)
	}
}

func TestPanicInTransaction(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		err := s.ReadWriteTransaction(t.Context(), tree, func(ctx context.Context, x storage.LogTreeTX) error { panic("oh") })
		t.Error(err)
	}()
	queue(t, s, tree, "a")
	checkTree(t, s, tree)
}

// A hash that no longer is the value's never gets into the tree.
func TestChangedWhileQueued(t *testing.T) {
	dir := t.TempDir()
	s := newStorage(t, dir, Options{HashLeaf: hashLeaf})
	tree := newTree(t, s)
	queue(t, s, tree, "value to be changed")
	was := checkTree(t, s, tree)
	x := mustTree(t, s, tree)
	if err := x.writer.c.exec("UPDATE queue SET value = x'00'"); err != nil {
		t.Fatal(err)
	}
	err := s.ReadWriteTransaction(t.Context(), tree, func(ctx context.Context, x storage.LogTreeTX) error {
		leaves, err := x.DequeueLeaves(ctx, 10, time.Now())
		if err != nil {
			return err
		}
		return x.UpdateSequencedLeaves(ctx, leaves)
	})
	if status.Code(err) != codes.DataLoss {
		t.Errorf("sequencing it: %v", err)
	}
	if now := checkTree(t, s, tree); now.TreeSize != was.TreeSize {
		t.Errorf("size %d", now.TreeSize)
	}
}

type testAnchor struct {
	heads     []uint64
	check     error
	recording error
}

func (a *testAnchor) Check(_ int64, root types.LogRootV1) error {
	if a.check == nil && len(a.heads) > 0 && a.heads[len(a.heads)-1] != root.TreeSize {
		return fmt.Errorf("anchored %d, stored %d", a.heads[len(a.heads)-1], root.TreeSize)
	}
	return a.check
}

func (a *testAnchor) Record(_ int64, root types.LogRootV1) error {
	if a.recording == nil {
		a.heads = append(a.heads, root.TreeSize)
	}
	return a.recording
}

func TestAnchor(t *testing.T) {
	anchor := new(testAnchor)
	opts := onWrite
	opts.Anchor = anchor
	dir := t.TempDir()
	s := newStorage(t, dir, opts)
	tree := newTree(t, s)
	queue(t, s, tree, "a")
	queue(t, s, tree, "b", "c")
	if got := fmt.Sprint(anchor.heads); got != "[0 1 3]" {
		t.Errorf("recorded %s", got)
	}

	// What contradicts the anchor is not built upon.
	anchor.check = errors.New("another history")
	queue(t, s, tree, "d")
	if root := checkTree(t, s, tree); root.TreeSize != 3 {
		t.Errorf("size %d over a head that the anchor denies", root.TreeSize)
	}
	anchor.check = nil

	// What could not be anchored is shown to nobody.
	anchor.recording = errors.New("the anchor's disk is gone")
	snap, err := s.SnapshotForTree(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := queueOne(s, tree, "e"); status.Code(err) != codes.Unavailable || !errors.Is(err, anchor.recording) {
		t.Errorf("the write: %v", err)
	}
	if _, err := s.Head(tree.TreeId); err == nil {
		t.Error("the head can be read")
	}
	if root := rootOf(t, snap); root.TreeSize != 3 || snap.Commit(t.Context()) == nil {
		t.Errorf("size %d in a snapshot that commits", root.TreeSize)
	}
	if err := <-s.Fatal(); !errors.Is(err, anchor.recording) {
		t.Errorf("the reason: %v", err)
	}
}

func TestCanceledWhileWaiting(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	err := s.ReadWriteTransaction(t.Context(), tree, func(context.Context, storage.LogTreeTX) error {
		done := make(chan error)
		go func() {
			_, err := s.QueueLeaves(ctx, tree, []*trillian.LogLeaf{newLeaf("a")}, time.Now())
			done <- err
		}()
		cancel()
		if err := <-done; status.Code(err) != codes.Canceled {
			t.Errorf("queueing: %v", err)
		}
		if err := s.ReadWriteTransaction(ctx, tree, nil); status.Code(err) != codes.Canceled {
			t.Errorf("another transaction: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if queue(t, s, tree, "a"); checkTree(t, s, tree).TreeSize != 1 {
		t.Error("the canceled entry was queued")
	}
}

func TestBadRequestsAlone(t *testing.T) {
	s := newStorage(t, t.TempDir(), onWrite)
	tree := newTree(t, s)
	short := newLeaf("short")
	short.LeafIdentityHash = short.LeafIdentityHash[:31]
	if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{newLeaf("a"), short}, time.Now()); status.Code(err) != codes.InvalidArgument {
		t.Errorf("short identity: %v", err)
	}
	if root := checkTree(t, s, tree); root.TreeSize != 0 {
		t.Errorf("size %d", root.TreeSize)
	}
	big := newLeaf(string(bytes.Repeat([]byte("big"), 1<<20)))
	if _, err := s.QueueLeaves(t.Context(), tree, []*trillian.LogLeaf{big}, time.Now()); err != nil {
		t.Errorf("three megabytes: %v", err)
	}
	if root := checkTree(t, s, tree); root.TreeSize != 1 {
		t.Errorf("size %d", root.TreeSize)
	}
}

// TestFullDisk fills a small disk for real, in a mount namespace of its own.
func TestFullDisk(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SIGBOX_TEST_FILL_DISK="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// fillDisk is the process that TestFullDisk starts.
func fillDisk(dir string) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	logs, filler := filepath.Join(dir, "logs"), filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 6<<20), 0o600); err != nil {
		return err
	}
	if err := Create(logs); err != nil {
		return err
	}
	s, err := Open(context.Background(), logs, onWrite)
	if err != nil {
		return err
	}
	tree, err := createLog(s)
	if err != nil {
		return err
	}
	written := uint64(0)
	fill := func() error {
		for range 10_000 {
			if err := queueOne(s, tree, fmt.Sprint(written, strings.Repeat("x", 4000))); err != nil {
				return err
			}
			written++
		}
		return errors.New("the disk is not full")
	}
	check := func(when string) error {
		head, err := s.Head(tree.TreeId)
		if err != nil {
			return fmt.Errorf("%s: %w", when, err)
		}
		if head.TreeSize != written {
			return fmt.Errorf("%s: size %d, %d acknowledged", when, head.TreeSize, written)
		}
		return nil
	}
	for i := range 20 {
		if err := fill(); status.Code(err) != codes.ResourceExhausted {
			return fmt.Errorf("attempt %d with a full disk: %w", i, err)
		}
		if err := check("on a full disk"); err != nil {
			return err
		}
	}
	full := written
	if err := os.Remove(filler); err != nil {
		return err
	}
	if err := fill(); status.Code(err) != codes.ResourceExhausted {
		return fmt.Errorf("with space again: %w", err)
	}
	if written < full+100 {
		return fmt.Errorf("with space again: %d after %d", written, full)
	}
	// Closing cannot make room; the file must be as good as after a crash.
	if err := s.Close(); err != nil {
		return fmt.Errorf("closing on a full disk: %w", err)
	}
	if s, err = Open(context.Background(), logs, onWrite); err != nil {
		return fmt.Errorf("opening on a full disk: %w", err)
	}
	if err := check("after reopening"); err != nil {
		return err
	}
	return s.Close()
}
