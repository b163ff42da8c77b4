package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/folder"
)

// An archive is a folder of segments, each of them records one after the other. A log's segment is named for the first leaf in it, so that names
// sort in the order of the log; those of the search index are numbered. Segments are only ever appended to.
const (
	archiveName = "archive.json"
	// completeName is there once the archive has what the search index had before it.
	completeName = "index.complete"
	segmentSize  = 64 << 20
	indexStem    = "index"
)

// identity is what archive.json says.
type identity struct {
	Format   int    `json:"format"`
	Instance string `json:"instance"`
}

// Errors of archives.
var (
	// ErrForeign: it is another instance's.
	ErrForeign = errors.New("it is another instance's")
	// ErrNoArchive: there is none in the folder.
	ErrNoArchive = errors.New("there is no archive")
)

func logStem(tree int64) string { return fmt.Sprintf("log-%d", tree) }

// CheckArchive is an error unless dir has an archive of the instance.
func CheckArchive(dir, instance string) error {
	data, err := os.ReadFile(filepath.Join(dir, archiveName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("archive %s: %w", dir, ErrNoArchive)
	} else if err != nil {
		return err
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil || id.Format < 1 {
		return fmt.Errorf("archive %s: %s: %w", dir, archiveName, ErrDamaged)
	}
	switch {
	case id.Format > Format:
		return fmt.Errorf("archive %s: %w", dir, ErrNewer)
	case id.Instance != instance:
		return fmt.Errorf("archive %s: %w: %s, not %s", dir, ErrForeign, id.Instance, instance)
	}
	return nil
}

// Archive is an archive that is written to, by this process alone.
type Archive struct {
	dir  string
	lock *os.File
	// Fresh says that the archive may lack what the search index had before it.
	Fresh bool
	logs  map[int64]*appender
	index *appender
}

// OpenArchive goes on with the archive in a folder, or begins one if the folder is empty. What a crash left unfinished at its end is cut off: it
// comes again.
func OpenArchive(dir, instance string, trees ...int64) (_ *Archive, err error) {
	lock, err := folder.Lock(dir)
	if err != nil {
		return nil, fmt.Errorf("taking the archive's folder: %w", err)
	}
	a := &Archive{dir: dir, lock: lock, logs: make(map[int64]*appender)}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		data, err := json.Marshal(identity{Format, instance})
		if err != nil {
			return nil, err
		}
		if err := durable.WriteNew(filepath.Join(dir, archiveName), append(data, '\n'), 0o600); err != nil {
			return nil, err
		}
	} else if err := CheckArchive(dir, instance); err != nil {
		return nil, err
	}
	for _, tree := range trees {
		if a.logs[tree], err = openAppender(dir, logStem(tree)); err != nil {
			return nil, err
		}
	}
	if a.index, err = openAppender(dir, indexStem); err != nil {
		return nil, err
	}
	_, err = os.Lstat(filepath.Join(dir, completeName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// What was cut off the index may have been taken out of its outbox.
	a.Fresh = err != nil || a.index.cut
	return a, nil
}

// Complete says whether the archive has all that the search index had before it, durably.
func (a *Archive) Complete(is bool) error {
	path := filepath.Join(a.dir, completeName)
	a.Fresh = !is
	if is {
		return durable.WriteFile(path, nil, 0o600)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(a.dir)
}

// Last is the newest root that is in the archive; its size is zero if there is none.
func (a *Archive) Last(tree int64) Root { return a.logs[tree].root }

// Next is the first leaf that is not in the archive.
func (a *Archive) Next(tree int64) uint64 { return a.logs[tree].next }

// Leaf appends a leaf, which must be the next one. It is durable after Root.
func (a *Archive) Leaf(l *Leaf) error {
	p := a.logs[l.Tree]
	if l.Index != p.next {
		return fmt.Errorf("leaf %d comes where leaf %d of log %d should", l.Index, p.next, l.Tree)
	}
	p.next++
	return p.add(l, l.Index)
}

// Root appends a root over the leaves before it and returns when all is durable.
func (a *Archive) Root(r Root) error {
	p := a.logs[r.Tree]
	if r.Size != p.next {
		return fmt.Errorf("a root of size %d after %d leaves of log %d", r.Size, p.next, r.Tree)
	}
	p.root = r
	if err := p.add(&r, r.Size); err != nil {
		return err
	}
	return p.sync()
}

// Index appends records of the search index. They are durable after SyncIndex.
func (a *Archive) Index(r Record) error {
	a.index.next++
	return a.index.add(r, a.index.next)
}

// SyncIndex returns when what Index appended is durable.
func (a *Archive) SyncIndex() error { return a.index.sync() }

// Close gives the folder free. What is not durable comes again.
func (a *Archive) Close() error {
	errs := []error{}
	for _, p := range a.logs {
		errs = append(errs, p.close())
	}
	if a.index != nil {
		errs = append(errs, a.index.close())
	}
	return errors.Join(append(errs, a.lock.Close())...)
}

// appender writes to the last of a row of segments.
type appender struct {
	dir, stem string
	name      string
	f         *os.File
	size      int64 // of the segment, with what is in buf
	buf       []byte
	next      uint64
	root      Root
	cut       bool
	failed    error
}

func openAppender(dir, stem string) (*appender, error) {
	p := &appender{dir: dir, stem: stem}
	names, err := segments(dir, stem)
	if err != nil || len(names) == 0 {
		return p, err
	}
	p.name = names[len(names)-1]
	path := filepath.Join(dir, p.name)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	// Where it begins stands in its name.
	if _, err := fmt.Sscanf(strings.TrimPrefix(p.name, stem+"-"), "%d.seg", &p.next); err != nil {
		return nil, fmt.Errorf("%s is not a segment's name", path)
	}
	// Leaves without a root over them come again, and so does what can not be read.
	whole, next := 0, p.next
	for at := 0; at < len(data); {
		r, n, err := decode(data[at:])
		if leaf, ok := r.(*Leaf); err == nil && ok && leaf.Index != next {
			err = ErrDamaged
		}
		if err != nil {
			p.cut = !errors.Is(err, ErrTorn)
			break
		}
		at += n
		switch r := r.(type) {
		case *Leaf:
			next++
		case *Root:
			whole, p.next, p.root = at, next, *r
			p.root.Hash = slices.Clone(r.Hash)
		default:
			next++
			whole, p.next = at, next
		}
	}
	if p.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	p.size = int64(whole)
	if whole < len(data) {
		if err := errors.Join(p.f.Truncate(p.size), p.f.Sync()); err != nil {
			return nil, errors.Join(err, p.f.Close())
		}
	}
	if _, err := p.f.Seek(p.size, 0); err != nil {
		return nil, errors.Join(err, p.f.Close())
	}
	return p, nil
}

func segments(dir, stem string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), stem+"-") && strings.HasSuffix(e.Name(), ".seg") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// add puts a record into the segment, or into a new one named for first if that is full.
func (p *appender) add(r Record, first uint64) error {
	if p.failed != nil {
		return p.failed
	}
	_, isRoot := r.(*Root)
	if p.f == nil || p.size >= segmentSize && !isRoot {
		if err := p.roll(first); err != nil {
			return p.fail(err)
		}
	}
	was := len(p.buf)
	p.buf = Append(p.buf, r)
	p.size += int64(len(p.buf) - was)
	if len(p.buf) < 1<<20 {
		return nil
	}
	return p.flush()
}

func (p *appender) roll(first uint64) error {
	if p.f != nil {
		if err := p.sync(); err != nil {
			return err
		}
		if err := p.f.Close(); err != nil {
			return err
		}
	}
	name := fmt.Sprintf("%s-%020d.seg", p.stem, first)
	f, err := os.OpenFile(filepath.Join(p.dir, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	p.f, p.name, p.size = f, name, 0
	return durable.SyncDir(p.dir)
}

func (p *appender) flush() error {
	if len(p.buf) == 0 {
		return nil
	}
	_, err := p.f.Write(p.buf)
	p.buf = p.buf[:0]
	return p.fail(err)
}

func (p *appender) sync() error {
	if p.f == nil || p.failed != nil {
		return p.failed
	}
	if err := p.flush(); err != nil {
		return err
	}
	return p.fail(p.f.Sync())
}

// fail makes every later call fail: what the file holds is found out when it is opened again.
func (p *appender) fail(err error) error {
	if err != nil && p.failed == nil {
		p.failed = fmt.Errorf("writing the archive: %w", err)
	}
	return p.failed
}

func (p *appender) close() error {
	if p.f == nil {
		return nil
	}
	return p.f.Close()
}

// ReadLog goes through the archived leaves and roots of a log, as far as they can be read. Why that ends before the end of the last segment, if it does, is an
// error that wraps ErrDamaged; a record that was being written when the instance ended is not.
func ReadLog(ctx context.Context, dir string, tree int64, each func(Record) error) error {
	return readSegments(ctx, dir, logStem(tree), each)
}

// ReadIndex goes through the archived records of the search index.
func ReadIndex(ctx context.Context, dir string, each func(Record) error) error {
	return readSegments(ctx, dir, indexStem, each)
}

func readSegments(ctx context.Context, dir, stem string, each func(Record) error) error {
	names, err := segments(dir, stem)
	if err != nil {
		return err
	}
	for i, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if st.Size() > maxPart {
			return fmt.Errorf("%s is larger than a segment: %w", path, ErrDamaged)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = Decode(data, each)
		switch {
		case errors.Is(err, ErrTorn) && i == len(names)-1:
			return nil
		case errors.Is(err, ErrTorn):
			return fmt.Errorf("%s: %w: %w", path, ErrDamaged, err)
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
