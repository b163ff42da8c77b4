package anchor

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/folder"
)

const (
	instance = "0123456789abcdef"
	tree     = 42
)

func root(size uint64, text string) Root {
	h := sha256.Sum256([]byte(text))
	return Root{Size: size, Hash: h[:], Timestamp: 1000 + size}
}

func newFolder(t *testing.T) *Folder {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "anchor")
	must(t, Create(dir))
	f := open(t, dir)
	must(t, f.Add(tree))
	return f
}

func open(t *testing.T, dir string) *Folder {
	t.Helper()
	f, err := Open(dir, instance)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestRecord(t *testing.T) {
	f := newFolder(t)
	if r, err := f.Root(tree); err != nil || r.Hash != nil {
		t.Errorf("a new one: %v, %v", r, err)
	}
	for _, step := range []struct {
		name string
		root Root
		want error
	}{
		{"the empty tree", root(0, "empty"), nil},
		{"another empty tree", root(0, "other"), ErrFork},
		{"growth", root(5, "five"), nil},
		{"the same", root(5, "five"), nil},
		{"a younger root of the same tree", Root{5, root(5, "five").Hash, 2000}, nil},
		{"an older one", Root{5, root(5, "five").Hash, 1}, nil},
		{"a fork", root(5, "cinq"), ErrFork},
		{"smaller", root(4, "four"), ErrBack},
		{"none", Root{}, ErrBack},
		{"growth again", root(6, "six"), nil},
	} {
		was, _ := f.Root(tree)
		err := f.Record(tree, step.root)
		if !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
		now, _ := f.Root(tree)
		if want := map[bool]Root{true: step.root, false: was}[step.want == nil]; !now.Same(want) || now.Timestamp < was.Timestamp {
			t.Errorf("%s: anchored %v", step.name, now)
		}
		if read, err := Read(f.dir, instance, tree); err != nil || !read.Same(now) || read.Torn {
			t.Errorf("%s: the file has %v, %v", step.name, read, err)
		}
		must(t, f.Verify(tree))
	}
	must(t, f.Check(tree, root(6, "six")))
	for _, other := range []Root{root(5, "five"), root(6, "six!"), root(7, "seven")} {
		if err := f.Check(tree, other); err == nil {
			t.Errorf("%v is taken for the anchored one", other)
		}
	}
	if err := f.Record(tree+1, root(1, "x")); !errors.Is(err, ErrMissing) {
		t.Errorf("an unknown tree: %v", err)
	}
}

// One row for each way in which a file can be found, after ten roots.
func TestFound(t *testing.T) {
	newest, before := root(10, "10"), root(9, "9")
	for _, test := range []struct {
		name string
		do   func(t *testing.T, path string)
		want error
		root Root
		torn bool
	}{
		{"as it was left", func(*testing.T, string) {}, nil, newest, false},
		{"the newest slot torn", func(t *testing.T, path string) { tear(t, path, 10, 100) }, nil, before, true},
		{"the older slot torn", func(t *testing.T, path string) { tear(t, path, 9, 0) }, nil, newest, true},
		{"one bit of the newest slot", func(t *testing.T, path string) { flip(t, path, []byte("generation 12"), 12) }, nil, before, true},
		{"one bit behind its text", func(t *testing.T, path string) { flipAt(t, path, 2*slotSize-1) }, nil, newest, true},
		{"both slots torn", func(t *testing.T, path string) { tear(t, path, 10, 9); tear(t, path, 9, 9) }, ErrDamaged, Root{}, false},
		{"cut short", func(t *testing.T, path string) { must(t, os.Truncate(path, slotSize)) }, ErrDamaged, Root{}, false},
		{"empty", func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }, ErrDamaged, Root{}, false},
		{"longer", func(t *testing.T, path string) { must(t, os.Truncate(path, 3*slotSize)) }, ErrDamaged, Root{}, false},
		{"gone", func(t *testing.T, path string) { must(t, os.Remove(path)) }, ErrMissing, Root{}, false},
		{"of another instance", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, contents(record{"other", tree, 7, newest}), 0o600))
		}, ErrForeign, Root{}, false},
		{"of another tree", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, contents(record{instance, tree + 1, 7, newest}), 0o600))
		}, ErrForeign, Root{}, false},
		{"halves of two files", func(t *testing.T, path string) {
			data := contents(record{instance, tree, 12, newest})
			copy(data[slotSize:], contents(record{instance, tree, 2, newest})[slotSize:])
			must(t, os.WriteFile(path, data, 0o600))
		}, ErrDamaged, Root{}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			for i := range uint64(11) {
				must(t, f.Record(tree, root(i, fmt.Sprint(i))))
			}
			path := f.Path(tree)
			must(t, f.Close())
			test.do(t, path)
			f = open(t, filepath.Dir(path))
			st, err := f.Load(tree)
			if !errors.Is(err, test.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if err != nil {
				return
			}
			if !st.Same(test.root) || st.Torn != test.torn {
				t.Errorf("found %+v", st)
			}
			// A root that is recorded makes it whole.
			must(t, f.Record(tree, root(11, "11")))
			must(t, f.Verify(tree))
			if st, err = f.Load(tree); err != nil || st.Size != 11 || st.Torn {
				t.Errorf("after recording: %+v, %v", st, err)
			}
		})
	}
}

// tear writes half a slot over the one that holds a size.
func tear(t *testing.T, path string, size uint64, upto int) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	at := bytes.Index(data, fmt.Appendf(nil, "size %d\n", size)) / slotSize * slotSize
	copy(data[at:at+slotSize], make([]byte, upto))
	copy(data[at+upto:], bytes.Repeat([]byte{'x'}, 50))
	must(t, os.WriteFile(path, data, 0o600))
}

func flip(t *testing.T, path string, mark []byte, offset int) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	at := bytes.Index(data, mark)
	if at < 0 {
		t.Fatalf("%s is not in %s", mark, path)
	}
	flipAt(t, path, at+offset)
}

func flipAt(t *testing.T, path string, at int) {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	data[at] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
}

// Nothing of a slot may change unnoticed.
func TestEveryBit(t *testing.T) {
	slot := record{instance, tree, 3, root(7, "7")}.slot()
	if _, err := parseSlot(slot); err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(slot) {
		slot[bit/8] ^= 1 << (bit % 8)
		if r, err := parseSlot(slot); err == nil {
			t.Errorf("bit %d of byte %d: %+v", bit%8, bit/8, r)
		}
		slot[bit/8] ^= 1 << (bit % 8)
	}
}

func TestAdopt(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name string
		do   func(t *testing.T, path string)
		size uint64
		want error
		kept bool
	}{
		{"missing", func(t *testing.T, path string) { must(t, os.Remove(path)) }, 5, nil, false},
		{"damaged", func(t *testing.T, path string) { must(t, os.Truncate(path, 9)) }, 5, nil, true},
		{"foreign", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, contents(record{"other", tree, 7, root(9, "9")}), 0o600))
		}, 5, nil, true},
		{"torn", func(t *testing.T, path string) { tear(t, path, 10, 9) }, 9, nil, true},
		{"torn, for less", func(t *testing.T, path string) { tear(t, path, 10, 9) }, 8, ErrBack, false},
		{"sound, for less", func(*testing.T, string) {}, 9, ErrBack, false},
		{"sound, for more", func(*testing.T, string) {}, 11, nil, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFolder(t)
			for i := range uint64(11) {
				must(t, f.Record(tree, root(i, fmt.Sprint(i))))
			}
			test.do(t, f.Path(tree))
			err := f.Adopt(tree, root(test.size, fmt.Sprint(test.size)), now)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			if test.want == nil {
				if st, err := f.Load(tree); err != nil || st.Size != test.size || st.Torn {
					t.Errorf("%+v, %v", st, err)
				}
			}
			if _, err := os.Stat(f.Path(tree) + ".20261101T120000Z"); (err == nil) != test.kept {
				t.Errorf("the old one: %v", err)
			}
		})
	}
	f := newFolder(t)
	if err := f.Adopt(tree, Root{}, now); err == nil {
		t.Error("adopted no root")
	}
}

func TestFolder(t *testing.T) {
	f := newFolder(t)
	if _, err := Open(f.dir, instance); !errors.Is(err, folder.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	if err := Create(f.dir); !errors.Is(err, ErrExists) {
		t.Errorf("created again: %v", err)
	}
	if err := f.Add(tree); !errors.Is(err, ErrExists) {
		t.Errorf("added again: %v", err)
	}
	if _, err := Open(filepath.Join(f.dir, "none"), instance); !errors.Is(err, ErrMissing) {
		t.Errorf("a folder that is not there: %v", err)
	}
	if st, err := os.Stat(f.Path(tree)); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

// Writing on in a file that nobody will find again would anchor nothing.
func TestReplacedWhileOpen(t *testing.T) {
	for name, do := range map[string]func(path string) error{
		"removed":  os.Remove,
		"moved":    func(path string) error { return os.Rename(path, path+".moved") },
		"replaced": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) },
	} {
		f := newFolder(t)
		must(t, f.Record(tree, root(1, "1")))
		must(t, f.Check(tree, root(1, "1")))
		must(t, do(f.Path(tree)))
		for what, err := range map[string]error{"check": f.Check(tree, root(1, "1")), "verify": f.Verify(tree)} {
			if !errors.Is(err, ErrReplaced) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
	f := newFolder(t)
	must(t, f.Record(tree, root(1, "1")))
	flipAt(t, f.Path(tree), 30)
	if err := f.Verify(tree); !errors.Is(err, ErrDamaged) {
		t.Errorf("changed behind its back: %v", err)
	}
}

// After a write that failed nobody knows what the file has.
func TestFailedWrite(t *testing.T) {
	f := newFolder(t)
	must(t, f.Record(tree, root(1, "1")))
	a, err := f.file(tree)
	must(t, err)
	whole := a.f
	a.f, err = os.Open(a.name)
	must(t, err)
	if err := f.Record(tree, root(2, "2")); err == nil {
		t.Fatal("recorded in a file that can not be written")
	}
	must(t, a.f.Close())
	a.f = whole
	for what, err := range map[string]error{"record": f.Record(tree, root(2, "2")), "check": f.Check(tree, root(1, "1"))} {
		if err == nil {
			t.Errorf("%s goes on", what)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "anchor")
	if err := Create(dir); err != nil {
		b.Fatal(err)
	}
	f, err := Open(dir, instance)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Add(tree); err != nil {
		b.Fatal(err)
	}
	for i := range uint64(b.N) {
		if err := f.Record(tree, root(i+1, "x")); err != nil {
			b.Fatal(err)
		}
	}
}
