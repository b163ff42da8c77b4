// Package durability shows what survives: entries that were acknowledged,
// certificates that were issued, tokens that were spent, through kill -9 in the
// middle of a burst and through an orderly end.
package durability

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

// A witness remembers every tree head of a log that anybody was shown, and
// holds the log to them: one root for each size, each tree an extension of the
// one before, never fewer entries.
type witness struct {
	// consistency asks the log for a proof between two sizes, in hashes.
	consistency func(t *testing.T, first, last uint64) [][]byte

	mu     sync.Mutex
	roots  map[uint64]string // hexadecimal, by size
	proven uint64            // all up to this size are consistent
}

func newWitness(consistency func(t *testing.T, first, last uint64) [][]byte) *witness {
	return &witness{consistency: consistency, roots: map[uint64]string{}}
}

// saw notes a tree head. A second root for a size is a fork.
func (w *witness) saw(size uint64, root string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known, ok := w.roots[size]; ok && known != root {
		return fmt.Errorf("two roots for size %d: %s and %s", size, known, root)
	}
	w.roots[size] = root
	return nil
}

// largest is the size of the largest tree that anybody was shown.
func (w *witness) largest() (size uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.roots {
		size = max(size, s)
	}
	return size
}

// sawCheckpoint notes the tree head of a signed note: origin, size, root.
func (w *witness) sawCheckpoint(checkpoint string) error {
	lines := strings.Split(checkpoint, "\n")
	if len(lines) < 4 {
		return fmt.Errorf("not a checkpoint: %q", checkpoint)
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return err
	}
	root, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil {
		return err
	}
	return w.saw(size, hex.EncodeToString(root))
}

// holds demands that the log's present head extends every head seen.
func (w *witness) holds(t *testing.T, size uint64, root string) {
	t.Helper()
	if err := w.saw(size, root); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	sizes := make([]uint64, 0, len(w.roots))
	for s := range w.roots {
		if s > size {
			t.Fatalf("the tree shrank: %d entries now, %d were shown", size, s)
		}
		if s > 0 && s >= w.proven {
			sizes = append(sizes, s)
		}
	}
	slices.Sort(sizes)
	for i := 1; i < len(sizes); i++ {
		first, last := sizes[i-1], sizes[i]
		r1, _ := hex.DecodeString(w.roots[first])
		r2, _ := hex.DecodeString(w.roots[last])
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, first, last, w.consistency(t, first, last), r1, r2); err != nil {
			t.Fatalf("the tree of %d entries does not extend that of %d: %v", last, first, err)
		}
	}
	w.proven = size
}

// rekorLog is the witness of an instance's Rekor.
func rekorLog(i *e2etest.Instance) *witness {
	return newWitness(func(t *testing.T, first, last uint64) [][]byte {
		t.Helper()
		var answer struct {
			Hashes []string `json:"hashes"`
		}
		get(t, fmt.Sprintf("%s/api/v1/log/proof?firstSize=%d&lastSize=%d", i.URL, first, last), &answer)
		return decodeAll(t, answer.Hashes, hex.DecodeString)
	})
}

// rekorHead is Rekor's present tree head.
func rekorHead(t *testing.T, i *e2etest.Instance) (size uint64, root string) {
	t.Helper()
	var info struct {
		Size uint64 `json:"treeSize"`
		Root string `json:"rootHash"`
		Head string `json:"signedTreeHead"`
	}
	get(t, i.URL+"/api/v1/log", &info)
	return info.Size, info.Root
}

// ctLog is the witness of an instance's CT log (RFC 6962 section 4.4).
func ctLog(i *e2etest.Instance) *witness {
	return newWitness(func(t *testing.T, first, last uint64) [][]byte {
		t.Helper()
		var answer struct {
			Consistency []string `json:"consistency"`
		}
		get(t, fmt.Sprintf("%s/ctlog/ct/v1/get-sth-consistency?first=%d&second=%d", i.URL, first, last), &answer)
		return decodeAll(t, answer.Consistency, base64.StdEncoding.DecodeString)
	})
}

// An sth is the CT log's tree head (RFC 6962 section 4.3).
type sth struct {
	Size uint64 `json:"tree_size"`
	Root []byte `json:"sha256_root_hash"`
}

// ctHead is the CT log's present tree head.
func ctHead(t *testing.T, i *e2etest.Instance) (size uint64, root string) {
	t.Helper()
	var head sth
	get(t, i.URL+"/ctlog/ct/v1/get-sth", &head)
	return head.Size, hex.EncodeToString(head.Root)
}

func decodeAll(t *testing.T, texts []string, decode func(string) ([]byte, error)) [][]byte {
	t.Helper()
	out := make([][]byte, len(texts))
	for i, s := range texts {
		var err error
		if out[i], err = decode(s); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// get reads a JSON document.
func get(t *testing.T, url string, into any) {
	t.Helper()
	data := getRaw(t, url)
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%s: %v: %s", url, err, data)
	}
}

func getRaw(t *testing.T, url string) []byte {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", url, resp.Status, data)
	}
	return data
}
