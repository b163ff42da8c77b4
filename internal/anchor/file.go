package anchor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
)

// A file is two slots which are written in turns, in place: what is written never changes the file's size, so that one fdatasync makes it durable,
// and a write that is torn leaves the slot before it as it was. Slots are text, for people with nothing but a pager.
const (
	slotSize = 4096 // the largest unit that a disk writes at once
	magic    = "sigbox anchor 1"
)

// State is what a file holds.
type State struct {
	Root
	// Generation counts the roots that were recorded.
	Generation uint64
	// Torn says that the other slot can not be read. It may have held a newer root than this one: as a root is in the database before it
	// is here, the database then has it.
	Torn bool
}

type record struct {
	instance   string
	tree       int64
	generation uint64
	root       Root
}

// slot is the record as it stands in the file.
func (r record) slot() []byte {
	root := "none"
	if r.root.Hash != nil {
		root = hex.EncodeToString(r.root.Hash)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\ninstance %s\ntree %d\ngeneration %d\nsize %d\nroot %s\ntimestamp %d\n",
		magic, r.instance, r.tree, r.generation, r.root.Size, root, r.root.Timestamp)
	sum := sha256.Sum256(b.Bytes())
	fmt.Fprintf(&b, "checksum %x\n", sum)
	return append(b.Bytes(), bytes.Repeat([]byte{'\n'}, slotSize-b.Len())...)
}

// parseSlot reads a record. What it returns makes the very same slot, so that no byte of it goes unchecked.
func parseSlot(slot []byte) (r record, err error) {
	bad := fmt.Errorf("%w: a slot is not as it was written", ErrDamaged)
	lines := bytes.Split(slot, []byte{'\n'})
	if len(lines) < 8 || string(lines[0]) != magic {
		return r, bad
	}
	var root string
	for i, field := range []struct {
		name string
		set  func(string) error
	}{
		{"instance", func(s string) error { r.instance = s; return nil }},
		{"tree", func(s string) (err error) { r.tree, err = strconv.ParseInt(s, 10, 64); return err }},
		{"generation", func(s string) (err error) { r.generation, err = strconv.ParseUint(s, 10, 64); return err }},
		{"size", func(s string) (err error) { r.root.Size, err = strconv.ParseUint(s, 10, 64); return err }},
		{"root", func(s string) error { root = s; return nil }},
		{"timestamp", func(s string) (err error) { r.root.Timestamp, err = strconv.ParseUint(s, 10, 64); return err }},
	} {
		name, value, _ := bytes.Cut(lines[i+1], []byte{' '})
		if string(name) != field.name || field.set(string(value)) != nil {
			return r, bad
		}
	}
	if root != "none" {
		if r.root.Hash, err = hex.DecodeString(root); err != nil || len(r.root.Hash) != sha256.Size {
			return r, bad
		}
	}
	if len(r.instance) > 1024 || !bytes.Equal(r.slot(), slot) {
		return r, bad
	}
	return r, nil
}

// contents is a whole file: the record and, in the other slot, the same one a generation later.
func contents(r record) []byte {
	next := r
	next.generation++
	first, second := r.slot(), next.slot()
	if r.generation%2 == 1 {
		first, second = second, first
	}
	return append(first, second...)
}

// file is an open anchor.
type file struct {
	name string
	f    *os.File

	mu     sync.Mutex
	last   record
	torn   bool
	broken error // the write that failed
}

func openFile(name string, flag int, instance string, tree int64) (_ *file, err error) {
	f, err := os.OpenFile(name, flag, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", name, ErrMissing)
	} else if err != nil {
		return nil, fmt.Errorf("opening an anchor: %w", err)
	}
	a := &file{name: name, f: f}
	if a.last, a.torn, err = a.read(instance, tree); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return a, nil
}

// read returns the newer of the two records.
func (a *file) read(instance string, tree int64) (newest record, torn bool, err error) {
	st, err := a.f.Stat()
	if err != nil {
		return newest, false, err
	}
	if st.Size() != 2*slotSize || !st.Mode().IsRegular() {
		return newest, false, fmt.Errorf("%w: a file of %d bytes, want %d", ErrDamaged, st.Size(), 2*slotSize)
	}
	var good []record
	for i := range 2 {
		slot := make([]byte, slotSize)
		if _, err := a.f.ReadAt(slot, int64(i)*slotSize); err != nil {
			return newest, false, fmt.Errorf("reading: %w", err)
		}
		r, err := parseSlot(slot)
		if err != nil || r.generation%2 != uint64(i) {
			continue
		}
		if r.instance != instance || r.tree != tree {
			return newest, false, fmt.Errorf("%w: of instance %s and tree %d", ErrForeign, r.instance, r.tree)
		}
		good = append(good, r)
	}
	switch len(good) {
	case 0:
		return newest, false, fmt.Errorf("%w: neither of its slots is as it was written", ErrDamaged)
	case 1:
		return good[0], true, nil
	}
	older, newest := good[0], good[1]
	if older.generation > newest.generation {
		older, newest = newest, older
	}
	if newest.generation != older.generation+1 {
		return newest, false, fmt.Errorf("%w: generation %d after %d", ErrDamaged, newest.generation, older.generation)
	}
	if err := older.root.follows(newest.root); err != nil {
		return newest, false, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return newest, false, nil
}

func (a *file) state() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return State{Root: a.last.root, Generation: a.last.generation, Torn: a.torn}
}

// inPlace is an error if the name no longer leads to the file: the next start would find another one, or none.
func (a *file) inPlace() error {
	open, err := a.f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(a.name); err != nil || !os.SameFile(open, named) {
		return fmt.Errorf("%s: %w while it was in use", a.name, ErrReplaced)
	}
	return nil
}

func (a *file) check(root Root) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if !a.last.root.Same(root) {
		if err := a.last.root.follows(root); err != nil {
			return err
		}
		return fmt.Errorf("%v is not anchored: %v is", root, a.last.root)
	}
	return a.inPlace()
}

func (a *file) record(root Root) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if err := a.last.root.follows(root); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	next := a.last
	// A clock that was set back takes no anchor back.
	root.Timestamp = max(root.Timestamp, a.last.root.Timestamp)
	root.Hash = bytes.Clone(root.Hash)
	next.root = root
	if next.root.Same(a.last.root) && next.root.Timestamp == a.last.root.Timestamp && !a.torn {
		return nil
	}
	next.generation++
	_, err := a.f.WriteAt(next.slot(), int64(next.generation%2)*slotSize)
	if err == nil {
		err = fdatasync(a.f)
	}
	if err != nil {
		a.broken = fmt.Errorf("writing %s: %w", a.name, err)
		return a.broken
	}
	a.last, a.torn = next, false
	return nil
}

func (a *file) verify() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if err := a.inPlace(); err != nil {
		return err
	}
	is, torn, err := a.read(a.last.instance, a.last.tree)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", a.name, err)
	case torn != a.torn || is.generation != a.last.generation || !is.root.Same(a.last.root):
		return fmt.Errorf("%s: %w: generation %d, %v in place of generation %d, %v", a.name, ErrDamaged, is.generation, is.root, a.last.generation, a.last.root)
	}
	return nil
}
