package tuf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const day = 24 * time.Hour

// Lifetimes are how long each role's metadata is believed once signed.
type Lifetimes struct {
	Root, Targets, Snapshot, Timestamp time.Duration
}

// DefaultLifetimes suit a site that is visited twice a year.
//
// Root and targets need people: they last five years, both alike so that one
// visit renews both, and are worth an alarm in the last year, which leaves two
// visits. Nothing but a visit depends on their length: a stolen key is answered
// by a new root, not by waiting.
//
// Snapshot and timestamp are renewed by the running instance. Seven days bound
// how long a client can be kept on an old state, and how long one that cannot
// reach the instance goes on; thirty days of snapshot keep its version from
// changing each week. Both are renewed at half their life.
func DefaultLifetimes() Lifetimes {
	return Lifetimes{Root: 5 * 365 * day, Targets: 5 * 365 * day, Snapshot: 30 * day, Timestamp: 7 * day}
}

// Role is who signs for a role: its keys (ECDSA P-256, each once) and how many
// of their signatures are needed.
type Role struct {
	Signers   []crypto.Signer
	Threshold int
}

// Config is what a new repository is made from.
type Config struct {
	Root, Targets, Snapshot, Timestamp Role
	Lifetimes                          Lifetimes // a zero one takes its default
	Now                                time.Time
	Files                              []Target
}

// Create makes version 1 of everything.
func Create(c Config) (*Repository, error) {
	now := c.Now.UTC().Truncate(time.Second)
	lives := c.Lifetimes.withDefaults()
	if err := lives.check(); err != nil {
		return nil, err
	}
	root := metadata.Root(now.Add(lives.Root))
	signers := map[string][]signature.Signer{}
	for _, role := range []struct {
		name string
		Role
	}{
		{metadata.ROOT, c.Root},
		{metadata.TARGETS, c.Targets},
		{metadata.SNAPSHOT, c.Snapshot},
		{metadata.TIMESTAMP, c.Timestamp},
	} {
		list, err := addRole(&root.Signed, role.name, role.Role)
		if err != nil {
			return nil, fmt.Errorf("role %s: %w", role.name, err)
		}
		signers[role.name] = list
	}
	files := map[string][]byte{}
	if err := sign(files, versioned(1, metadata.ROOT), root, signers[metadata.ROOT]); err != nil {
		return nil, err
	}
	targets := metadata.Targets(now.Add(lives.Targets))
	for _, t := range c.Files {
		if err := addTarget(files, &targets.Signed, t); err != nil {
			return nil, err
		}
	}
	if err := sign(files, versioned(1, metadata.TARGETS), targets, signers[metadata.TARGETS]); err != nil {
		return nil, err
	}
	snapshot := metadata.Snapshot(now.Add(lives.Snapshot))
	snapshot.Signed.Meta["targets.json"] = metaFile(1, files[versioned(1, metadata.TARGETS)])
	if err := sign(files, versioned(1, metadata.SNAPSHOT), snapshot, signers[metadata.SNAPSHOT]); err != nil {
		return nil, err
	}
	timestamp := metadata.Timestamp(now.Add(lives.Timestamp))
	timestamp.Signed.Meta["snapshot.json"] = metaFile(1, files[versioned(1, metadata.SNAPSHOT)])
	if err := sign(files, timestampName, timestamp, signers[metadata.TIMESTAMP]); err != nil {
		return nil, err
	}
	return Parse(files)
}

// Renewal is how snapshot and timestamp are kept from expiring.
type Renewal struct {
	Snapshot, Timestamp []crypto.Signer
	Lifetimes           Lifetimes // of snapshot and timestamp; a zero one takes its default
	// Fraction of the lifetime below which the rest is too short, in (0,1).
	// Zero: one half.
	Fraction float64
	// AtLeast is the least version of snapshot and timestamp: clients may have seen
	// any below it, of metadata that is lost.
	AtLeast int64
}

// ExpiredError says that a role which only a ceremony can renew has expired.
type ExpiredError struct {
	Role    string
	Expired time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the TUF role %s expired at %s and can only be renewed by its own keys", e.Role, e.Expired.Format(time.RFC3339))
}

// ErrClock says that metadata lasts longer than it could if it had been signed
// before now: the clock went back, or the lifetimes were made shorter.
var ErrClock = errors.New("the clock is before the last signing")

// Renew signs timestamp, and snapshot where needed, anew when less than the
// wanted fraction of their lifetime remains. Otherwise it returns the repository itself.
//
// It fails with *ExpiredError when root or targets have expired, since clients
// would refuse the result, and with ErrClock rather than sign what an earlier
// clock dates.
func (r *Repository) Renew(now time.Time, p Renewal) (*Repository, error) {
	now = now.UTC().Truncate(time.Second)
	lives := p.Lifetimes.withDefaults()
	if err := lives.check(); err != nil {
		return nil, err
	}
	fraction := p.Fraction
	if fraction == 0 {
		fraction = 0.5
	}
	if !(fraction > 0 && fraction < 1) {
		return nil, fmt.Errorf("renewal fraction %v is not between 0 and 1", p.Fraction)
	}
	for _, e := range r.Expiries() {
		if (e.Role == metadata.ROOT || e.Role == metadata.TARGETS) && !now.Before(e.Expires) {
			return nil, &ExpiredError{e.Role, e.Expires}
		}
	}
	snapshotDue, err := due(now, r.snapshot.Signed.Expires, lives.Snapshot, fraction)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	timestampDue, err := due(now, r.timestamp.Signed.Expires, lives.Timestamp, fraction)
	if err != nil {
		return nil, fmt.Errorf("timestamp: %w", err)
	}
	snapshotDue = snapshotDue || r.snapshot.Signed.Version < p.AtLeast
	timestampDue = timestampDue || r.timestamp.Signed.Version < p.AtLeast
	if !snapshotDue && !timestampDue {
		return r, nil
	}
	files := r.Files()
	meta := r.timestamp.Signed.Meta["snapshot.json"]
	if snapshotDue {
		signers, err := signersOf(p.Snapshot)
		if err != nil {
			return nil, fmt.Errorf("role snapshot: %w", err)
		}
		next := metadata.Snapshot(now.Add(lives.Snapshot))
		next.Signed.Version = max(r.snapshot.Signed.Version+1, p.AtLeast)
		next.Signed.Meta = maps.Clone(r.snapshot.Signed.Meta)
		name := versioned(next.Signed.Version, metadata.SNAPSHOT)
		if err := sign(files, name, next, signers); err != nil {
			return nil, err
		}
		meta = metaFile(next.Signed.Version, files[name])
	}
	signers, err := signersOf(p.Timestamp)
	if err != nil {
		return nil, fmt.Errorf("role timestamp: %w", err)
	}
	next := metadata.Timestamp(now.Add(lives.Timestamp))
	next.Signed.Version = max(r.timestamp.Signed.Version+1, p.AtLeast)
	next.Signed.Meta = map[string]*metadata.MetaFiles{"snapshot.json": meta}
	if err := sign(files, timestampName, next, signers); err != nil {
		return nil, err
	}
	// Parse refuses what keys other than the root's have signed.
	renewed, err := Parse(files)
	if err != nil {
		return nil, fmt.Errorf("renewed repository: %w", err)
	}
	// Who fetched the old timestamp a moment ago now asks for its snapshot.
	old := versioned(r.snapshot.Signed.Version, metadata.SNAPSHOT)
	renewed.files[old] = r.files[old]
	return renewed, nil
}

// due tells whether too little of a lifetime remains. A remainder well above
// the whole lifetime means an earlier clock; a tenth is left for clocks that
// are set.
func due(now, expires time.Time, life time.Duration, fraction float64) (bool, error) {
	left := expires.Sub(now)
	if left > life+life/10 {
		return false, fmt.Errorf("%w: it expires at %s, more than %s from now", ErrClock, expires.Format(time.RFC3339), life)
	}
	return float64(left) < fraction*float64(life), nil
}

func (l Lifetimes) withDefaults() Lifetimes {
	d := DefaultLifetimes()
	for _, f := range []struct{ have, def *time.Duration }{
		{&l.Root, &d.Root}, {&l.Targets, &d.Targets}, {&l.Snapshot, &d.Snapshot}, {&l.Timestamp, &d.Timestamp},
	} {
		if *f.have == 0 {
			*f.have = *f.def
		}
	}
	return l
}

func (l Lifetimes) check() error {
	for _, d := range []time.Duration{l.Root, l.Targets, l.Snapshot, l.Timestamp} {
		if d < time.Minute {
			return fmt.Errorf("a lifetime of %s is too short: the least is a minute", d)
		}
	}
	return nil
}

// addRole enters a role's keys and threshold into the root.
func addRole(root *metadata.RootType, name string, role Role) ([]signature.Signer, error) {
	signers, err := signersOf(role.Signers)
	if err != nil {
		return nil, err
	}
	if role.Threshold < 1 || role.Threshold > len(signers) {
		return nil, fmt.Errorf("a threshold of %d does not fit %d keys", role.Threshold, len(signers))
	}
	root.Roles[name].Threshold = role.Threshold
	for _, s := range signers {
		pub, err := s.PublicKey()
		if err != nil {
			return nil, err
		}
		key, err := metadata.KeyFromPublicKey(pub)
		if err != nil {
			return nil, err
		}
		id, err := key.ID()
		if err != nil {
			return nil, err
		}
		// One key under two entries would count twice towards the threshold.
		if slices.Contains(root.Roles[name].KeyIDs, id) {
			return nil, fmt.Errorf("key %s is given twice", id)
		}
		if err := root.AddKey(key, name); err != nil {
			return nil, err
		}
	}
	return signers, nil
}

func addTarget(files map[string][]byte, targets *metadata.TargetsType, t Target) error {
	if _, ok := targets.Targets[t.Name]; ok {
		return fmt.Errorf("target %s is given twice", t.Name)
	}
	if len(t.Data) > maxTarget {
		return fmt.Errorf("target %s is larger than %d bytes", t.Name, maxTarget)
	}
	// One hash only: go-tuf asks for the file under any one of them.
	info, err := metadata.TargetFile().FromBytes(t.Name, t.Data, "sha256")
	if err != nil {
		return fmt.Errorf("target %s: %w", t.Name, err)
	}
	if len(t.Custom) > 0 {
		custom := t.Custom
		info.Custom = &custom
	}
	file, err := targetPath(t.Name, info)
	if err != nil {
		return err
	}
	targets.Targets[t.Name] = info
	files[file] = bytes.Clone(t.Data)
	return nil
}

func metaFile(version int64, data []byte) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	m := metadata.MetaFile(version)
	m.Length = int64(len(data))
	m.Hashes = metadata.Hashes{"sha256": sum[:]}
	return m
}

func sign[T metadata.Roles](files map[string][]byte, name string, m *metadata.Metadata[T], signers []signature.Signer) error {
	for _, s := range signers {
		if _, err := m.Sign(s); err != nil {
			return fmt.Errorf("signing %s: %w", name, err)
		}
	}
	data, err := m.ToBytes(true)
	if err != nil {
		return fmt.Errorf("signing %s: %w", name, err)
	}
	files[name] = data
	return nil
}

// signer lets any crypto.Signer sign metadata, wherever its key is.
type signer struct{ key crypto.Signer }

func signersOf(keys []crypto.Signer) ([]signature.Signer, error) {
	if len(keys) == 0 {
		return nil, errors.New("no key to sign with")
	}
	var out []signature.Signer
	for _, k := range keys {
		if k == nil {
			return nil, errors.New("a key is missing")
		}
		pub, ok := k.Public().(*ecdsa.PublicKey)
		if !ok || pub.Curve != elliptic.P256() {
			return nil, errors.New("a key is not ECDSA P-256")
		}
		out = append(out, signer{k})
	}
	return out, nil
}

func (s signer) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	return s.key.Public(), nil
}

func (s signer) SignMessage(message io.Reader, _ ...signature.SignOption) ([]byte, error) {
	h := sha256.New()
	if _, err := io.Copy(h, message); err != nil {
		return nil, err
	}
	return s.key.Sign(rand.Reader, h.Sum(nil), crypto.SHA256)
}
