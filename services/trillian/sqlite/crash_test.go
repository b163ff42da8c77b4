package sqlite

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"github.com/google/trillian/types"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// writeUntilKilled is the process that TestKilled kills. It writes down each value once it is acknowledged, and each root it sees.
func writeUntilKilled(dir string) {
	opts := onWrite
	opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	folder, err := anchor.Open(dir+"-anchor", "test")
	if err != nil {
		fmt.Println("error", err)
		return
	}
	opts.Anchor = &anchors{folder: folder}
	s, err := Open(context.Background(), dir, opts)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	trees, err := storage.ListTrees(context.Background(), s.Admin(), false)
	if err != nil {
		fmt.Println("error", err)
		return
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				value := fmt.Sprintf("%d/%d/%d/%s", os.Getpid(), w, i, strings.Repeat("x", 1500))
				if _, err := s.QueueLeaves(context.Background(), trees[0], []*trillian.LogLeaf{newLeaf(value)}, time.Now()); err != nil {
					say("error %v", err)
					return
				}
				say("wrote %s", value)
				head, err := s.Head(trees[0].TreeId)
				if err != nil {
					say("error %v", err)
					return
				}
				say("root %d %x", head.TreeSize, head.RootHash)
			}
		})
	}
	writers.Wait()
}

// anchors keeps the roots of a test's storage in a folder of real anchors.
type anchors struct{ folder *anchor.Folder }

func newAnchors(t testing.TB) *anchors {
	t.Helper()
	return openAnchors(t, filepath.Join(t.TempDir(), "anchor"))
}

func openAnchors(t testing.TB, dir string) *anchors {
	t.Helper()
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		must(t, anchor.Create(dir))
	}
	folder, err := anchor.Open(dir, "test")
	must(t, err)
	t.Cleanup(func() { must(t, folder.Close()) })
	return &anchors{folder}
}

// known makes the anchor of a new tree, or opens the one there is.
func (a *anchors) known(tree int64) error {
	if _, err := a.folder.Root(tree); err == nil {
		return nil
	}
	_, err := a.folder.Load(tree)
	if errors.Is(err, anchor.ErrMissing) {
		err = a.folder.Add(tree)
	}
	return err
}

func (a *anchors) Check(tree int64, root types.LogRootV1) error {
	if err := a.known(tree); err != nil {
		return err
	}
	return a.folder.Check(tree, anchor.Root{Size: root.TreeSize, Hash: root.RootHash, Timestamp: root.TimestampNanos})
}

func (a *anchors) Record(tree int64, root types.LogRootV1) error {
	if err := a.known(tree); err != nil {
		return err
	}
	return a.folder.Record(tree, anchor.Root{Size: root.TreeSize, Hash: root.RootHash, Timestamp: root.TimestampNanos})
}

// checkAnchor holds what a killed writer left in its anchor against what it said and what it left in the database.
func checkAnchor(t *testing.T, dir string, s *Storage, tree *trillian.Tree, seen []*types.LogRootV1, now *types.LogRootV1) {
	t.Helper()
	st, err := anchor.Read(dir+"-anchor", "test", tree.TreeId)
	must(t, err)
	for _, r := range seen {
		if r.TreeSize > st.Size || r.TreeSize == st.Size && !bytes.Equal(r.RootHash, st.Hash) {
			t.Fatalf("anchored %v after size %d, root %x was seen", st.Root, r.TreeSize, r.RootHash)
		}
	}
	if st.Size > now.TreeSize {
		t.Fatalf("anchored %v, stored %d", st.Root, now.TreeSize)
	}
	src, err := s.Source(tree.TreeId)
	must(t, err)
	must(t, errors.Join(verify.Extends(t.Context(), src, st.Size, st.Hash, now.TreeSize, now.RootHash), src.Close()))
	// As the next start does.
	folder, err := anchor.Open(dir+"-anchor", "test")
	must(t, err)
	_, err = folder.Load(tree.TreeId)
	must(t, err)
	must(t, errors.Join(folder.Record(tree.TreeId, anchor.Root{Size: now.TreeSize, Hash: now.RootHash, Timestamp: now.TimestampNanos}), folder.Close()))
}

func TestKilled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	opts := onWrite
	opening := openAnchors(t, dir+"-anchor")
	opts.Anchor = opening
	s := newStorage(t, dir, opts)
	tree := newTree(t, s)
	if err := errors.Join(s.Close(), opening.folder.Close()); err != nil {
		t.Fatal(err)
	}
	var roots []*types.LogRootV1
	acknowledged := make(map[string]bool)
	for round := range 5 {
		killWhileWriting(t, dir, 100+211*round, func(kind, rest string) {
			switch kind {
			case "wrote":
				acknowledged[rest] = true
			case "root":
				size, hash, _ := strings.Cut(rest, " ")
				n, err := strconv.ParseUint(size, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				h, err := hex.DecodeString(hash)
				if err != nil {
					t.Fatal(err)
				}
				roots = append(roots, &types.LogRootV1{TreeSize: n, RootHash: h})
			default:
				t.Fatalf("%s %s", kind, rest)
			}
		})
		s := openStorage(t, dir, onWrite)
		now := checkTree(t, s, tree)
		checkAnchor(t, dir, s, tree, roots, now)
		for _, r := range roots {
			if r.TreeSize > now.TreeSize {
				t.Fatalf("round %d: size %d after %d was seen", round, now.TreeSize, r.TreeSize)
			}
			checkConsistent(t, s, tree, r, now)
		}
		snap, err := s.SnapshotForTree(t.Context(), tree)
		if err != nil {
			t.Fatal(err)
		}
		for value := range acknowledged {
			found, err := snap.GetLeavesByHash(t.Context(), [][]byte{hashLeaf([]byte(value))}, true)
			if err != nil || len(found) != 1 || !bytes.Equal(found[0].LeafValue, []byte(value)) {
				t.Fatalf("round %d: %.20s… was acknowledged: %d found, %v", round, value, len(found), err)
			}
			checkIncluded(t, s, tree, found[0], now)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d acknowledged, tree of %d, %d roots seen", round, len(acknowledged), now.TreeSize, len(roots))
	}
}

// killWhileWriting starts a writer and kills it after a number of lines. said is called with every whole line it wrote.
func killWhileWriting(t *testing.T, dir string, lines int, said func(kind, rest string)) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SIGBOX_TEST_WRITE_UNTIL_KILLED="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	for n := 0; ; n++ {
		if n == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		line, err := r.ReadString('\n')
		if err != nil {
			break // a line cut short was not said
		}
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		said(kind, rest)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("the writer ended before it was killed")
	}
}
