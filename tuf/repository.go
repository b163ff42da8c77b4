package tuf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Names in the repository, relative to its URL.
const (
	// FirstRoot is the file that clients pin.
	FirstRoot     = "1.root.json"
	timestampName = "timestamp.json"
	targetsDir    = "targets"
)

// Limits on what is read back: those that clients (go-tuf) apply, so that
// nothing is served which they would refuse.
const (
	maxMetadata = 500_000
	maxTarget   = 4 << 20
	maxRoots    = 256
)

// Repository is a whole TUF repository that verified: every signature against
// the root, every version and hash against the file that names it. It never
// changes; Renew returns another.
type Repository struct {
	files     map[string][]byte
	roots     int64 // highest root version
	root      *metadata.Metadata[metadata.RootType]
	targets   *metadata.Metadata[metadata.TargetsType]
	snapshot  *metadata.Metadata[metadata.SnapshotType]
	timestamp *metadata.Metadata[metadata.TimestampType]
}

// Parse reads a repository from its files, by their path relative to its URL,
// and verifies it. What the timestamp does not lead to is dropped. Expiry is
// not checked: see Expiries.
func Parse(files map[string][]byte) (*Repository, error) {
	r := &Repository{files: map[string][]byte{}}
	if err := r.readRoots(files); err != nil {
		return nil, err
	}
	var err error
	if r.timestamp, err = read[metadata.TimestampType](r, files, timestampName, metadata.TIMESTAMP); err != nil {
		return nil, err
	}
	snapshot, ok := r.timestamp.Signed.Meta["snapshot.json"]
	if !ok || snapshot == nil {
		return nil, errors.New("timestamp.json names no snapshot")
	}
	name := versioned(snapshot.Version, metadata.SNAPSHOT)
	if r.snapshot, err = read[metadata.SnapshotType](r, files, name, metadata.SNAPSHOT); err != nil {
		return nil, err
	}
	if err := checkMeta(name, r.snapshot.Signed.Version, snapshot, files[name]); err != nil {
		return nil, err
	}
	targets, ok := r.snapshot.Signed.Meta["targets.json"]
	if !ok || targets == nil {
		return nil, fmt.Errorf("%s names no targets", name)
	}
	name = versioned(targets.Version, metadata.TARGETS)
	if r.targets, err = read[metadata.TargetsType](r, files, name, metadata.TARGETS); err != nil {
		return nil, err
	}
	if err := checkMeta(name, r.targets.Signed.Version, targets, files[name]); err != nil {
		return nil, err
	}
	for name, info := range r.targets.Signed.Targets {
		file, err := targetPath(name, info)
		if err != nil {
			return nil, err
		}
		data, ok := files[file]
		if !ok {
			return nil, fmt.Errorf("target %s: %s is missing", name, file)
		}
		if err := info.VerifyLengthHashes(data); err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
		r.files[file] = data
	}
	return r, nil
}

// readRoots walks from the first root to the last: each is signed by the one
// before and by itself (TUF §5.3).
func (r *Repository) readRoots(files map[string][]byte) error {
	for v := int64(1); v <= maxRoots; v++ {
		name := versioned(v, metadata.ROOT)
		data, ok := files[name]
		if !ok {
			break
		}
		next, err := parse[metadata.RootType](name, data)
		if err != nil {
			return err
		}
		if next.Signed.Version != v {
			return fmt.Errorf("%s holds version %d", name, next.Signed.Version)
		}
		if !next.Signed.ConsistentSnapshot {
			return fmt.Errorf("%s does not use consistent snapshots", name)
		}
		if r.root != nil {
			if err := r.root.VerifyDelegate(metadata.ROOT, next); err != nil {
				return fmt.Errorf("%s is not signed by the root before it: %w", name, err)
			}
		}
		if err := next.VerifyDelegate(metadata.ROOT, next); err != nil {
			return fmt.Errorf("%s is not signed by its own keys: %w", name, err)
		}
		r.root, r.roots, r.files[name] = next, v, data
	}
	if r.root == nil {
		return fmt.Errorf("%s is missing", FirstRoot)
	}
	return nil
}

// read parses one file, verifies it against the root and keeps it.
func read[T metadata.Roles](r *Repository, files map[string][]byte, name, role string) (*metadata.Metadata[T], error) {
	data, ok := files[name]
	if !ok {
		return nil, fmt.Errorf("%s is missing", name)
	}
	m, err := parse[T](name, data)
	if err != nil {
		return nil, err
	}
	if err := r.root.VerifyDelegate(role, m); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	r.files[name] = data
	return m, nil
}

func parse[T metadata.Roles](name string, data []byte) (*metadata.Metadata[T], error) {
	if len(data) > maxMetadata {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxMetadata)
	}
	m, err := new(metadata.Metadata[T]).FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func checkMeta(name string, version int64, want *metadata.MetaFiles, data []byte) error {
	if version != want.Version {
		return fmt.Errorf("%s holds version %d", name, version)
	}
	if err := want.VerifyLengthHashes(data); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func versioned(version int64, role string) string {
	return fmt.Sprintf("%d.%s.json", version, role)
}

// targetPath is where a target lies with consistent snapshots.
func targetPath(name string, info *metadata.TargetFiles) (string, error) {
	if err := checkTargetName(name); err != nil {
		return "", err
	}
	sum, ok := info.Hashes["sha256"]
	if !ok {
		return "", fmt.Errorf("target %s has no sha256", name)
	}
	return path.Join(targetsDir, sum.String()+"."+name), nil
}

// checkTargetName keeps targets inside their folder, here and on the machines
// of clients.
func checkTargetName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if name == "" || len(name) > 128 || name[0] == '.' || strings.Trim(name, allowed) != "" {
		return fmt.Errorf("%q cannot be the name of a target", name)
	}
	return nil
}

// Files are all files by their path relative to the repository's URL, for
// serving as they are. The bytes must not be changed.
func (r *Repository) Files() map[string][]byte { return maps.Clone(r.files) }

// Version is the timestamp's: of two states of a repository the newer has the
// higher one.
func (r *Repository) Version() int64 { return r.timestamp.Signed.Version }

// Root is the first root, which clients pin.
func (r *Repository) Root() []byte { return bytes.Clone(r.files[FirstRoot]) }

// RootChecksum is the SHA-256 of the first root in hexadecimal, to be compared
// by a person or given to "trust init --root-checksum".
func (r *Repository) RootChecksum() string {
	sum := sha256.Sum256(r.files[FirstRoot])
	return hex.EncodeToString(sum[:])
}

// Target is the file that the targets metadata calls by this name.
func (r *Repository) Target(name string) (data []byte, ok bool) {
	info, ok := r.targets.Signed.Targets[name]
	if !ok {
		return nil, false
	}
	file, err := targetPath(name, info)
	if err != nil {
		return nil, false
	}
	return bytes.Clone(r.files[file]), true
}

// TargetNames lists the targets in order.
func (r *Repository) TargetNames() []string {
	return slices.Sorted(maps.Keys(r.targets.Signed.Targets))
}

// Expiry tells until when a role's metadata is believed.
type Expiry struct {
	Role    string    `json:"role"`
	Version int64     `json:"version"`
	Expires time.Time `json:"expires"`
}

// Expiries lists the four roles, the one that expires next first.
func (r *Repository) Expiries() []Expiry {
	list := []Expiry{
		{metadata.ROOT, r.root.Signed.Version, r.root.Signed.Expires},
		{metadata.TARGETS, r.targets.Signed.Version, r.targets.Signed.Expires},
		{metadata.SNAPSHOT, r.snapshot.Signed.Version, r.snapshot.Signed.Expires},
		{metadata.TIMESTAMP, r.timestamp.Signed.Version, r.timestamp.Signed.Expires},
	}
	slices.SortStableFunc(list, func(a, b Expiry) int { return a.Expires.Compare(b.Expires) })
	return list
}
