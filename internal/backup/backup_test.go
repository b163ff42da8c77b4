package backup

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

const (
	instance = "0123456789abcdef"
	tree     = 42
)

func leaf(i uint64) *Leaf {
	return &Leaf{Tree: tree, Index: i, Queued: 1, Integrated: int64(i), Value: fmt.Appendf(nil, "value %d", i), Extra: []byte{}}
}

func rootAt(t *testing.T, size uint64) Root {
	t.Helper()
	r := NewReplay(tree)
	for i := range size {
		if _, err := r.Add(leaf(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	hash, err := r.Root()
	if err != nil {
		t.Fatal(err)
	}
	return Root{Tree: tree, Size: size, Timestamp: size, Hash: hash}
}

var records = []Record{
	leaf(0),
	&Leaf{Tree: -1, Index: 1 << 63, Queued: -5, Integrated: 1 << 62, Identity: []byte("id"), Value: []byte{}, Extra: nil},
	&Root{Tree: tree, Size: 7, Timestamp: 8, Hash: bytes.Repeat([]byte{9}, 32)},
	&IndexRow{Key: []byte("key"), Entry: []byte("entry")},
	&Attestation{Key: "sha256:…", Body: bytes.Repeat([]byte("x"), 300)},
}

func TestRecords(t *testing.T) {
	var data []byte
	for _, r := range records {
		data = Append(data, r)
	}
	var got []Record
	collect := func(r Record) error { got = append(got, r); return nil }
	if n, err := Decode(data, collect); err != nil || n != len(data) || !reflect.DeepEqual(got, records) {
		t.Errorf("%v, %d of %d bytes, %#v", err, n, len(data), got)
	}
	for n := range data {
		got = nil
		whole, err := Decode(data[:n], collect)
		if err == nil && whole != n || err != nil && !errors.Is(err, ErrTorn) || len(got) > len(records) {
			t.Errorf("cut at %d: %d, %v", n, whole, err)
		}
	}
	for bit := range 8 * len(data) {
		data[bit/8] ^= 1 << (bit % 8)
		if _, err := Decode(data, func(Record) error { return nil }); err == nil {
			t.Errorf("bit %d of byte %d goes unnoticed", bit%8, bit/8)
		}
		data[bit/8] ^= 1 << (bit % 8)
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range records {
		f.Add(Append(nil, r))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		whole, _ := Decode(data, func(r Record) error { again = Append(again, r); return nil })
		if whole > len(data) {
			t.Errorf("%d of %d bytes", whole, len(data))
		}
	})
}

// stream is a small backup.
func stream(t *testing.T, finish bool) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	s := NewStream(&b)
	rows := NewRecords(s, LogPrefix+"rekor")
	for i := range uint64(5) {
		if err := rows.Add(leaf(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(rows.Flush(), s.Part(ConfigPart, []byte("url: x\n")), s.Part("empty", nil)); err != nil {
		t.Fatal(err)
	}
	if !finish {
		return &b
	}
	root := rootAt(t, 5)
	m := Manifest{Format: Format, Instance: instance, Logs: []Log{{Name: "rekor", Tree: tree, Size: 5, Root: hex.EncodeToString(root.Hash)}}}
	if err := s.Finish(m); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "b.tar")
	m, err := Receive(t.Context(), path, stream(t, true), new(Proof))
	if err != nil || len(m.Parts) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if again, err := Read(t.Context(), path, new(Proof)); err != nil || again.Checksum != m.Checksum {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := Receive(t.Context(), path, stream(t, true), nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
}

// One row for each way in which a backup comes to nothing. None leaves anything in the folder.
func TestReceiveFails(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, row := range []struct {
		name string
		ctx  context.Context
		from io.Reader
		chk  Check
	}{
		{"it breaks off", t.Context(), stream(t, false), nil},
		{"nothing comes", t.Context(), bytes.NewReader(nil), nil},
		{"something else comes", t.Context(), bytes.NewReader(bytes.Repeat([]byte("x"), 5000)), nil},
		{"it is cancelled", cancelled, stream(t, true), nil},
		{"the copy is not what it should be", t.Context(), stream(t, true), refusing{}},
	} {
		dir := t.TempDir()
		if _, err := Receive(row.ctx, filepath.Join(dir, "b.tar"), row.from, row.chk); err == nil {
			t.Errorf("%s: no error", row.name)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", row.name, left, err)
		}
	}
}

type refusing struct{}

func (refusing) Begin(Manifest) error      { return nil }
func (refusing) Part(string, []byte) error { return nil }
func (refusing) End() error                { return errors.New("no") }

// A log that is not what its manifest says is not taken, whatever the checksums say.
func TestProof(t *testing.T) {
	root := hex.EncodeToString(rootAt(t, 5).Hash)
	for name, log := range map[string]Log{
		"fewer":        {Tree: tree, Size: 4, Root: root},
		"more":         {Tree: tree, Size: 6, Root: root},
		"another root": {Tree: tree, Size: 5, Root: hex.EncodeToString(rootAt(t, 4).Hash)},
		"another tree": {Tree: tree + 1, Size: 5, Root: root},
	} {
		p := new(Proof)
		if err := p.Begin(Manifest{Logs: []Log{log}}); err != nil {
			t.Fatal(err)
		}
		var data []byte
		for i := range uint64(5) {
			data = Append(data, leaf(i))
		}
		if err := errors.Join(p.Part(LogPrefix+"rekor", data), p.End()); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// The archive goes on after whatever a crash left at its end.
func TestArchive(t *testing.T) {
	for name, leave := range map[string]func(data []byte) []byte{
		"closed":              func(b []byte) []byte { return b },
		"a record torn":       func(b []byte) []byte { return append(b, Append(nil, leaf(3))[:10]...) },
		"leaves without root": func(b []byte) []byte { return Append(Append(b, leaf(3)), leaf(4)) },
		"zeros":               func(b []byte) []byte { return append(b, make([]byte, 5000)...) },
		"the root torn":       func(b []byte) []byte { return append(Append(b, leaf(3)), Append(nil, &Root{})[:5]...) },
		"all of it torn":      func(b []byte) []byte { return b[:3] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open := func() *Archive {
				t.Helper()
				a, err := OpenArchive(dir, instance, tree)
				if err != nil {
					t.Fatal(err)
				}
				return a
			}
			grow := func(a *Archive, to uint64) {
				t.Helper()
				for i := a.Next(tree); i < to; i++ {
					if err := a.Leaf(leaf(i)); err != nil {
						t.Fatal(err)
					}
				}
				if err := errors.Join(a.Root(rootAt(t, to)), a.Index(&IndexRow{Key: []byte{byte(to)}, Entry: []byte{1}}), a.SyncIndex()); err != nil {
					t.Fatal(err)
				}
			}
			a := open()
			if !a.Fresh {
				t.Error("a new one is not fresh")
			}
			if err := a.Complete(true); err != nil {
				t.Fatal(err)
			}
			grow(a, 3)
			if _, err := OpenArchive(dir, instance, tree); err == nil {
				t.Error("opened twice")
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			names, err := segments(dir, logStem(tree))
			if err != nil || len(names) != 1 {
				t.Fatalf("%v, %v", names, err)
			}
			path := filepath.Join(dir, names[0])
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, leave(data), 0o600); err != nil {
				t.Fatal(err)
			}
			a = open()
			if a.Fresh {
				t.Error("the index is to come again")
			}
			grow(a, 6)
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			replay := NewReplay(tree)
			err = ReadLog(t.Context(), dir, tree, func(r Record) error {
				if l, ok := r.(*Leaf); ok {
					_, err := replay.Add(l, nil)
					return err
				}
				return nil
			})
			root, rootErr := replay.Root()
			if err := errors.Join(err, rootErr); err != nil || !bytes.Equal(root, rootAt(t, 6).Hash) {
				t.Errorf("replayed %d leaves, root %x: %v", replay.Size(), root, err)
			}
			rows := 0
			if err := ReadIndex(t.Context(), dir, func(Record) error { rows++; return nil }); err != nil || rows != 2 {
				t.Errorf("%d rows, %v", rows, err)
			}
			if err := CheckArchive(dir, "another"); !errors.Is(err, ErrForeign) {
				t.Errorf("of another instance: %v", err)
			}
		})
	}
}
