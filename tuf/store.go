package tuf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigbox/sigbox/internal/durable"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Load reads and verifies the repository in a folder. Without one the error
// satisfies errors.Is(err, fs.ErrNotExist).
func Load(dir string) (*Repository, error) {
	files := map[string][]byte{}
	for _, sub := range []string{"", targetsDir} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			return nil, fmt.Errorf("reading the TUF repository: %w", err)
		}
		for _, e := range entries {
			// Hidden files are what an interrupted write left behind.
			if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			name := e.Name()
			if sub != "" {
				name = sub + "/" + name
			}
			data, err := readLimited(filepath.Join(dir, name), maxTarget)
			if err != nil {
				return nil, fmt.Errorf("reading the TUF repository: %w", err)
			}
			files[name] = data
		}
	}
	r, err := Parse(files)
	if err != nil {
		return nil, fmt.Errorf("TUF repository in %s: %w", dir, err)
	}
	return r, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return os.ReadFile(path)
}

// Save writes the repository into a folder, durably and in an order in which a
// reader finds each file that another one names: targets, roots, targets
// metadata, snapshot, and last the timestamp, which makes the rest visible. It
// can be stopped anywhere: what it wrote until then is found or ignored.
//
// Roots are for ever: one that differs is an error. So is a folder whose
// timestamp is newer than the repository's, since clients would see a rollback.
// Superseded snapshots and targets metadata are removed.
func Save(dir string, r *Repository) error {
	if err := r.checkNewer(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, targetsDir), 0o755); err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	for _, step := range []func(name string) bool{
		func(n string) bool { return strings.HasPrefix(n, targetsDir+"/") },
		func(n string) bool { return strings.HasSuffix(n, "."+metadata.ROOT+".json") },
		func(n string) bool { return strings.HasSuffix(n, "."+metadata.TARGETS+".json") },
		func(n string) bool { return strings.HasSuffix(n, "."+metadata.SNAPSHOT+".json") },
		func(n string) bool { return n == timestampName },
	} {
		for name, data := range r.files {
			if !step(name) {
				continue
			}
			if err := write(filepath.Join(dir, name), data); err != nil {
				return fmt.Errorf("saving the TUF repository: %w", err)
			}
		}
	}
	return r.removeSuperseded(dir)
}

// checkNewer refuses to put an older state over a newer one, and one root over
// another.
func (r *Repository) checkNewer(dir string) error {
	for name, data := range r.files {
		if !strings.HasSuffix(name, "."+metadata.ROOT+".json") {
			continue
		}
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("saving the TUF repository: %w", err)
		}
		if err == nil && !bytes.Equal(have, data) {
			return fmt.Errorf("saving the TUF repository: %s holds another %s", dir, name)
		}
	}
	data, err := readLimited(filepath.Join(dir, timestampName), maxMetadata)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	have, err := parse[metadata.TimestampType](timestampName, data)
	if err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	if have.Signed.Version > r.timestamp.Signed.Version {
		return fmt.Errorf("saving the TUF repository: %s holds version %d of the timestamp, newer than %d",
			dir, have.Signed.Version, r.timestamp.Signed.Version)
	}
	return nil
}

// write leaves a file alone that holds the right bytes already.
func write(path string, data []byte) error {
	have, err := os.ReadFile(path)
	if err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.WriteFile(path, data, 0o644)
}

// removeSuperseded drops snapshots and targets metadata that no reader asks
// for any more, so that renewals do not fill the disk.
func (r *Repository) removeSuperseded(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("saving the TUF repository: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		_, kept := r.files[name]
		superseded := strings.HasSuffix(name, "."+metadata.SNAPSHOT+".json") || strings.HasSuffix(name, "."+metadata.TARGETS+".json")
		if kept || !superseded {
			continue
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("saving the TUF repository: %w", err)
		}
	}
	return nil
}
