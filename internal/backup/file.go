package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// partSize is how many bytes of records make a part. A part is held in memory.
const partSize = 8 << 20

// maxPart bounds a part that is read: a single record may be as large as a request that the instance takes.
const maxPart = 512 << 20

// Sink takes the parts of a backup, one after the other.
type Sink interface {
	Part(name string, data []byte) error
}

// Records gathers records into parts.
type Records struct {
	to     Sink
	prefix string
	n      int
	buf    []byte
}

// NewRecords writes to parts called prefix and a number.
func NewRecords(to Sink, prefix string) *Records { return &Records{to: to, prefix: prefix} }

// Add adds a record.
func (r *Records) Add(rec Record) error {
	r.buf = Append(r.buf, rec)
	if len(r.buf) < partSize {
		return nil
	}
	return r.Flush()
}

// Flush writes what was gathered.
func (r *Records) Flush() error {
	if len(r.buf) == 0 {
		return nil
	}
	err := r.to.Part(fmt.Sprintf("%s-%06d", r.prefix, r.n), r.buf)
	r.n, r.buf = r.n+1, r.buf[:0]
	return err
}

// Stream writes parts to a pipe or socket, for File.Receive. The manifest comes last, because it names all that was before it.
type Stream struct {
	tar   *tar.Writer
	parts []Part
}

// NewStream writes to w.
func NewStream(w io.Writer) *Stream { return &Stream{tar: tar.NewWriter(w)} }

// Part writes a part.
func (s *Stream) Part(name string, data []byte) error {
	sum := sha256.Sum256(data)
	s.parts = append(s.parts, Part{name, int64(len(data)), hex.EncodeToString(sum[:])})
	return writePart(s.tar, name, data)
}

// Finish ends the stream. Without it the stream is worth nothing.
func (s *Stream) Finish(m Manifest) error {
	m.Parts = s.parts
	data, err := m.encode()
	if err != nil {
		return err
	}
	if err := writePart(s.tar, ManifestName, data); err != nil {
		return err
	}
	return s.tar.Close()
}

func writePart(w *tar.Writer, name string, data []byte) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Unix(0, 0), Format: tar.FormatPAX, Typeflag: tar.TypeReg}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// Receive writes what a Stream sends into a file, whose name appears when it is whole, durable and verified: nothing that fails leaves
// anything behind that could be taken for a backup. check, if set, is told of every record while the file is read again. An existing file is
// never overwritten.
func Receive(ctx context.Context, path string, from io.Reader, check Check) (m Manifest, err error) {
	if _, err := os.Lstat(path); err == nil {
		return m, &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".tmp-*") // mode 0600
	if err != nil {
		return m, err
	}
	defer func() {
		if f != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if m, err = receive(ctx, f, from); err != nil {
		return m, fmt.Errorf("writing %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return m, fmt.Errorf("writing %s: %w", path, err)
	}
	again, err := Read(ctx, f.Name(), check)
	if err != nil {
		return m, fmt.Errorf("reading again what was written for %s: %w", path, err)
	}
	if again.Checksum != m.Checksum {
		return m, fmt.Errorf("reading again what was written for %s: %w", path, ErrDamaged)
	}
	if err := os.Link(f.Name(), path); err != nil { // fails on an existing name
		return m, err
	}
	name := f.Name()
	err = errors.Join(f.Close(), os.Remove(name))
	f = nil
	return m, errors.Join(err, durable.SyncDir(filepath.Dir(path)))
}

// syncEvery bounds what waits to be written, so that the instance's own fsyncs do not wait for it.
const syncEvery = 4 << 20

func receive(ctx context.Context, f *os.File, from io.Reader) (m Manifest, err error) {
	out := tar.NewWriter(f)
	if err := writePart(out, ManifestName, make([]byte, manifestSize)); err != nil {
		return m, err
	}
	head, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return m, err
	}
	at := head - manifestSize // the size is a multiple of tar's blocks
	in := tar.NewReader(from)
	var parts []Part
	unsynced := 0
	for {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		name, data, err := readPart(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return m, fmt.Errorf("the instance broke off: %w", err)
		}
		if name == ManifestName {
			if m, err = parseManifest(data); err != nil {
				return m, err
			}
			break
		}
		sum := sha256.Sum256(data)
		parts = append(parts, Part{name, int64(len(data)), hex.EncodeToString(sum[:])})
		if err := writePart(out, name, data); err != nil {
			return m, err
		}
		if unsynced += len(data); unsynced >= syncEvery {
			if err := f.Sync(); err != nil {
				return m, err
			}
			unsynced = 0
		}
	}
	if len(parts) != len(m.Parts) {
		return m, fmt.Errorf("%d parts came, the manifest names %d", len(parts), len(m.Parts))
	}
	for i, p := range parts {
		if p != m.Parts[i] {
			return m, fmt.Errorf("part %s: %w", p.Name, ErrDamaged)
		}
	}
	if err := out.Close(); err != nil {
		return m, err
	}
	data, err := m.encode()
	if err != nil {
		return m, err
	}
	_, err = f.WriteAt(data, at)
	return m, err
}

func readPart(in *tar.Reader) (name string, data []byte, err error) {
	h, err := in.Next()
	if err != nil {
		return "", nil, err
	}
	if h.Typeflag != tar.TypeReg || h.Size < 0 || h.Size > maxPart {
		return "", nil, fmt.Errorf("part %q: %w", h.Name, ErrDamaged)
	}
	// Memory is taken as bytes come, not as the header promises.
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(in, h.Size)); err != nil || n != h.Size {
		return "", nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	return h.Name, b.Bytes(), nil
}

// Check is told of what a backup holds, after its checksum was compared.
type Check interface {
	// Begin is called first.
	Begin(m Manifest) error
	Part(name string, data []byte) error
	// End is called when all was there.
	End() error
}

// Read goes through a backup: the manifest comes first, and every part is compared with it before anybody is told of it. Nothing may be missing and
// nothing may be there besides.
func Read(ctx context.Context, path string, check Check) (m Manifest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, err
	}
	defer f.Close()
	in := tar.NewReader(f)
	name, data, err := readPart(in)
	if err != nil || name != ManifestName || len(data) != manifestSize {
		return m, fmt.Errorf("%s is not a backup, or its beginning is damaged: %w", path, errors.Join(err, ErrDamaged))
	}
	if m, err = parseManifest(data); err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	if check != nil {
		if err := check.Begin(m); err != nil {
			return m, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, p := range m.Parts {
		if err := ctx.Err(); err != nil {
			return m, err
		}
		name, data, err := readPart(in)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return m, fmt.Errorf("%s ends before part %s: %w", path, p.Name, ErrDamaged)
		} else if err != nil {
			return m, fmt.Errorf("%s: part %s: %w: %w", path, p.Name, ErrDamaged, err)
		}
		sum := sha256.Sum256(data)
		if name != p.Name || int64(len(data)) != p.Size || hex.EncodeToString(sum[:]) != p.SHA256 {
			return m, fmt.Errorf("%s: part %s is not what the manifest says: %w", path, p.Name, ErrDamaged)
		}
		if check != nil {
			if err := check.Part(name, data); err != nil {
				return m, fmt.Errorf("%s: part %s: %w", path, name, err)
			}
		}
	}
	if _, err := in.Next(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%s has more in it than the manifest says: %w", path, ErrDamaged)
	}
	if check != nil {
		if err := check.End(); err != nil {
			return m, fmt.Errorf("%s: %w", path, err)
		}
	}
	return m, nil
}
