package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/internal/audit"
)

// threeFiles is a closed record of three files with several lines each.
func threeFiles(t testing.TB) audit.Options {
	t.Helper()
	o := create(t, 1500)
	for l, i := open(t, o), 0; ; i++ {
		add(t, l, audit.Issued, i)
		if h := l.Head(); h.Segment == 3 && i%5 == 4 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			return o
		}
	}
}

func segment(o audit.Options, n int) string {
	return filepath.Join(o.Dir, fmt.Sprintf("audit-%06d.jsonl", n))
}

func linesOf(t testing.TB, path string) [][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(bytes.Lines(data))
}

func rewrite(t testing.TB, path string, lines [][]byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

// breaks is every break that reading on finds, and what it ends with.
func breaks(o audit.Options) ([]*audit.ChainError, error) {
	var all []*audit.ChainError
	_, err := audit.Read(context.Background(), o.Dir, o.Instance, nil, func(c *audit.ChainError) error {
		all = append(all, c)
		return nil
	})
	return all, err
}

// damaged checks that a record is found damaged, by name of file and line: at
// once, and as the only or first of the breaks.
func damaged(t *testing.T, what string, o audit.Options, file, line int) {
	t.Helper()
	_, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil)
	var chain *audit.ChainError
	if !errors.As(err, &chain) || !errors.Is(err, audit.ErrDamaged) || chain.File != filepath.Base(segment(o, file)) || chain.Line != line {
		t.Errorf("%s: found %v, want %s line %d", what, err, filepath.Base(segment(o, file)), line)
		return
	}
	if line > 0 && !strings.Contains(err.Error(), fmt.Sprintf("%s line %d: ", chain.File, line)) {
		t.Errorf("%s: the error does not name the line: %v", what, err)
	}
	if all, _ := breaks(o); len(all) == 0 || *all[0] != *chain || len(all) > 3 {
		t.Errorf("%s: reading on finds %v", what, all)
	}
}

// TestDamageIsFoundAtEachLine of each file.
func TestDamageIsFoundAtEachLine(t *testing.T) {
	intact := threeFiles(t)
	if all, err := breaks(intact); err != nil || len(all) > 0 {
		t.Fatal(all, err)
	}
	for n := 1; n <= 3; n++ {
		lines := linesOf(t, segment(intact, n))
		last := len(lines) - 1
		follower := func(i int) (int, int) { // the line after line i, both from 0
			if i < last {
				return n, i + 2
			}
			return n + 1, 1
		}
		for i := range lines {
			change := func(what string, file, line int, edit func(lines [][]byte) [][]byte) {
				t.Helper()
				o := audit.Options{Dir: t.TempDir(), Instance: instance}
				if err := os.CopyFS(o.Dir, os.DirFS(intact.Dir)); err != nil {
					t.Fatal(err)
				}
				rewrite(t, segment(o, n), edit(slices.Clone(lines)))
				what = fmt.Sprintf("file %d line %d %s", n, i+1, what)
				if file > 3 { // nothing follows: only the head file knows
					var head *audit.HeadError
					if _, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil); !errors.As(err, &head) || !errors.Is(err, audit.ErrDamaged) {
						t.Errorf("%s: %v", what, err)
					}
				} else {
					damaged(t, what, o, file, line)
				}
				// The start looks at the end only, but there it sees it too.
				if n == 3 {
					if l, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
						l.Close()
						t.Errorf("%s: opened", what)
					}
				}
			}
			file, line := follower(i)
			change("edited", file, line, func(l [][]byte) [][]byte {
				l[i] = bytes.Replace(l[i], []byte(`"time":"2`), []byte(`"time":"3`), 1)
				return l
			})
			change("no record", n, i+1, func(l [][]byte) [][]byte {
				l[i] = []byte("{}\n")
				return l
			})
			change("garbage", n, i+1, func(l [][]byte) [][]byte {
				l[i] = append(bytes.Repeat([]byte{0}, len(l[i])-1), '\n')
				return l
			})
			change("repeated", n, i+2, func(l [][]byte) [][]byte { return slices.Insert(l, i+1, l[i]) })
			if i == 0 {
				continue
			}
			if i < last {
				change("removed", n, i+1, func(l [][]byte) [][]byte { return slices.Delete(l, i, i+1) })
				change("swapped with the next", n, i+1, func(l [][]byte) [][]byte {
					l[i], l[i+1] = l[i+1], l[i]
					return l
				})
			}
			change("and all after it removed", n+1, 1, func(l [][]byte) [][]byte { return l[:i] })
		}
	}
}

func TestFilesMissingAndMoved(t *testing.T) {
	for n := 1; n <= 2; n++ {
		o := threeFiles(t)
		if err := os.Remove(segment(o, n)); err != nil {
			t.Fatal(err)
		}
		damaged(t, fmt.Sprintf("file %d missing", n), o, n, 0)
		if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
			t.Errorf("opened without file %d: %v", n, err)
		}
	}
	o := threeFiles(t)
	if err := os.Remove(segment(o, 3)); err != nil {
		t.Fatal(err)
	}
	var head *audit.HeadError
	if _, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil); !errors.As(err, &head) {
		t.Errorf("without the last file: %v", err)
	}
	if _, err := audit.Open(o); !errors.As(err, &head) {
		t.Errorf("opened without the last file: %v", err)
	}

	o = threeFiles(t)
	swap(t, segment(o, 1), segment(o, 2))
	damaged(t, "files 1 and 2 swapped", o, 1, 1)
	o = threeFiles(t)
	swap(t, segment(o, 2), segment(o, 3))
	damaged(t, "files 2 and 3 swapped", o, 2, 1)
	if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("opened with files swapped: %v", err)
	}

	// A record of another instance, whole.
	o = threeFiles(t)
	o.Instance = strings.Repeat("f", 32)
	damaged(t, "another's", o, 1, 1)
	if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("opened another's: %v", err)
	}
}

func swap(t *testing.T, a, b string) {
	t.Helper()
	for _, r := range [][2]string{{a, a + ".tmp"}, {b, a}, {a + ".tmp", b}} {
		if err := os.Rename(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLineTooLong(t *testing.T) {
	o := threeFiles(t)
	lines := linesOf(t, segment(o, 2))
	lines[1] = append(bytes.Repeat([]byte("x"), 1<<17), '\n')
	rewrite(t, segment(o, 2), lines)
	damaged(t, "long line", o, 2, 2)

	o = threeFiles(t)
	n := len(linesOf(t, segment(o, 3)))
	appendTo(t, segment(o, 3), strings.Repeat("x", 4<<20))
	if _, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("endless last line: %v", err)
	}
	if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("opened with an endless last line: %v", err)
	}
	if got := linesOf(t, segment(o, 3)); len(got) != n+1 {
		t.Errorf("the damaged record was changed: %d lines", len(got))
	}
}

func TestHeadFile(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"garbage": func(p string) error { return os.WriteFile(p, []byte("{}"), 0o600) },
	} {
		o := threeFiles(t)
		if err := damage(filepath.Join(o.Dir, "head.json")); err != nil {
			t.Fatal(err)
		}
		var head *audit.HeadError
		if _, err := audit.Open(o); !errors.As(err, &head) {
			t.Errorf("%s: opened: %v", name, err)
		}
		if _, err := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil); !errors.As(err, &head) {
			t.Errorf("%s: read: %v", name, err)
		}
	}
	// An older one, far back, is no damage: it is written now and then.
	o := threeFiles(t)
	old := create(t, 1500)
	lines := linesOf(t, segment(o, 1))
	rewrite(t, segment(old, 1), lines)
	if err := os.WriteFile(filepath.Join(o.Dir, "head.json"), fmt.Appendf(nil, `{"seq":1,"sha256":"%x","segment":1}`, sum(lines[0])), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, o)
	add(t, l, audit.Issued, "more")
	// It is when the file names a line that never was.
	l.Close()
	if err := os.WriteFile(filepath.Join(o.Dir, "head.json"), fmt.Appendf(nil, `{"seq":2,"sha256":"%x","segment":1}`, sum(lines[0])), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line that never was: %v", err)
	}
}

// TestAdopt: what is damaged goes on when an administrator says so, and stays
// damaged for whoever reads it.
func TestAdopt(t *testing.T) {
	o := threeFiles(t)
	if damage, err := audit.Adopt(o); damage != nil || err != nil {
		t.Fatalf("an intact record: %v, %v", damage, err)
	}
	for name, damage := range map[string]func(o audit.Options){
		"end missing": func(o audit.Options) {
			lines := linesOf(t, segment(o, 3))
			rewrite(t, segment(o, 3), lines[:len(lines)-1])
		},
		"line edited": func(o audit.Options) {
			lines := linesOf(t, segment(o, 3))
			lines[1] = bytes.Replace(lines[1], []byte(`"time":"2`), []byte(`"time":"3`), 1)
			rewrite(t, segment(o, 3), lines)
		},
		"last line garbage": func(o audit.Options) {
			lines := linesOf(t, segment(o, 3))
			lines[len(lines)-1] = []byte("garbage\n")
			rewrite(t, segment(o, 3), lines)
		},
		"torn for long":                func(o audit.Options) { appendTo(t, segment(o, 3), strings.Repeat("x", 3<<20)) },
		"file missing":                 func(o audit.Options) { os.Remove(segment(o, 1)) },
		"file before the last missing": func(o audit.Options) { os.Remove(segment(o, 2)) },
		"last file empty":              func(o audit.Options) { rewrite(t, segment(o, 3), nil) },
		"head missing":                 func(o audit.Options) { os.Remove(filepath.Join(o.Dir, "head.json")) },
	} {
		o := threeFiles(t)
		damage(o)
		if _, err := audit.Open(o); !errors.Is(err, audit.ErrDamaged) {
			t.Errorf("%s: opened: %v", name, err)
			continue
		}
		found, err := audit.Adopt(o)
		if found == nil || err != nil {
			t.Errorf("%s: found %v, %v", name, found, err)
			continue
		}
		for i := range 20 { // and into the next file
			l, err := audit.Open(o)
			if err != nil {
				t.Errorf("%s: opening after: %v", name, err)
				break
			}
			add(t, l, audit.Issued, i)
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		if again, err := audit.Adopt(o); again != nil || err != nil {
			t.Errorf("%s: again: %v, %v", name, again, err)
		}
		all, err := breaks(o)
		if err != nil || len(all) == 0 && name != "head missing" && name != "torn for long" {
			t.Errorf("%s: breaks %v, %v", name, all, err)
		}
		said := false
		for n := 3; n <= 6; n++ {
			if data, err := os.ReadFile(segment(o, n)); err == nil {
				said = said || bytes.Contains(data, []byte(`"damage":"audit record is damaged: `))
			}
		}
		if !said {
			t.Errorf("%s: the record does not say what was wrong", name)
		}
	}
}

func FuzzRead(f *testing.F) {
	o := create(f, 0)
	l := open(f, o)
	add(f, l, audit.Issued, 1)
	add(f, l, audit.Stopped, 2)
	l.Close()
	data, err := os.ReadFile(segment(o, 1))
	if err != nil {
		f.Fatal(err)
	}
	head, err := os.ReadFile(filepath.Join(o.Dir, "head.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, head)
	f.Add(data[:len(data)/2], head)
	f.Add([]byte("{}\n\n\x00"), []byte(`{"seq":1e9,"segment":-1}`))
	f.Fuzz(func(t *testing.T, data, head []byte) {
		o := audit.Options{Dir: t.TempDir(), Instance: instance}
		for path, data := range map[string][]byte{segment(o, 1): data, filepath.Join(o.Dir, "head.json"): head} {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		sum, readErr := audit.Read(t.Context(), o.Dir, o.Instance, nil, nil)
		_, _ = breaks(o)
		l, err := audit.Open(o)
		if (err == nil) != (readErr == nil) {
			t.Fatalf("read %v, open %v", readErr, err)
		}
		if err == nil {
			if l.Head() != sum.Head {
				t.Fatalf("read to %+v, opened at %+v", sum.Head, l.Head())
			}
			add(t, l, audit.Issued, 3)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			read(t, o)
			return
		}
		if _, err := audit.Adopt(o); err != nil {
			return
		}
		l = open(t, o)
		add(t, l, audit.Issued, 3)
	})
}

func sum(b []byte) [32]byte { return sha256.Sum256(b) }
