package backup

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Names of the parts, and what they begin with.
const (
	LogPrefix    = "log/"
	IndexPrefix  = "index/"
	AuditPrefix  = "audit/"
	TUFPrefix    = "tuf/"
	CertPrefix   = "certs/"
	KeyPrefix    = "keys/"
	OfflineKeys  = "offline/"
	JournalPart  = "issuer/ci.journal"
	PeoplePart   = "issuer/people.json"
	ConfigPart   = "sigbox.yaml"
	InstancePart = "instance.json"
)

// IsRecords says whether a part is made of records.
func IsRecords(name string) bool {
	return strings.HasPrefix(name, LogPrefix) || strings.HasPrefix(name, IndexPrefix)
}

// Replay computes a log's roots from its leaves as they come.
type Replay struct {
	Tree  int64
	tree  *compact.Range
	wants map[uint64][]byte // roots that were published, by size
}

var ranges = compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// NewReplay starts with the empty log.
func NewReplay(tree int64) *Replay {
	return &Replay{Tree: tree, tree: ranges.NewEmptyRange(0), wants: make(map[uint64][]byte)}
}

// MismatchError says that the leaves make another root than the one that was published.
type MismatchError struct {
	Size      uint64
	Published []byte
	Computed  []byte
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("at size %d the entries make root %x, and %x was published", e.Size, e.Computed, e.Published)
}

// Expect makes Add compare the root at a size. A size that was passed already can not be compared any more and is an error.
func (r *Replay) Expect(size uint64, root []byte) error {
	switch at := r.tree.End(); {
	case size == at:
		return r.compare(root)
	case size < at:
		return fmt.Errorf("the root at size %d is asked for at size %d", size, at)
	}
	if is, ok := r.wants[size]; ok && !bytes.Equal(is, root) {
		return &MismatchError{size, root, is}
	}
	r.wants[size] = root
	return nil
}

func (r *Replay) compare(want []byte) error {
	is, err := r.Root()
	if err == nil && !bytes.Equal(is, want) {
		err = &MismatchError{r.Size(), want, is}
	}
	return err
}

// Size is how many leaves there were.
func (r *Replay) Size() uint64 { return r.tree.End() }

// Root is the root of what there was.
func (r *Replay) Root() ([]byte, error) {
	if r.tree.End() == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	return r.tree.GetRootHash(nil)
}

// Add goes on by a leaf, which must be the next one. Its Merkle leaf hash is returned. made, if set, is told of each node that the leaf completes.
func (r *Replay) Add(l *Leaf, made func(hash []byte)) ([]byte, error) {
	if l.Tree != r.Tree || l.Index != r.tree.End() {
		return nil, fmt.Errorf("leaf %d of log %d comes where leaf %d of log %d should", l.Index, l.Tree, r.tree.End(), r.Tree)
	}
	hash := rfc6962.DefaultHasher.HashLeaf(l.Value)
	if made != nil {
		made(hash)
	}
	err := r.tree.Append(hash, func(id compact.NodeID, hash []byte) {
		if made != nil && id.Level > 0 {
			made(hash)
		}
	})
	if err != nil {
		return nil, err
	}
	if want, ok := r.wants[r.tree.End()]; ok {
		delete(r.wants, r.tree.End())
		if err := r.compare(want); err != nil {
			return nil, err
		}
	}
	return hash, nil
}

// Proof is a Check that computes each log's root anew from its entries and counts what is in the index. Pace, if set, is called after each part with its
// size.
type Proof struct {
	Pace func(bytes int) error

	m     Manifest
	logs  map[int64]*Replay
	index Index
}

// Begin implements Check.
func (p *Proof) Begin(m Manifest) error {
	p.m, p.logs = m, make(map[int64]*Replay)
	for _, l := range m.Logs {
		p.logs[l.Tree] = NewReplay(l.Tree)
	}
	return nil
}

// Part implements Check.
func (p *Proof) Part(name string, data []byte) error {
	if IsRecords(name) {
		if _, err := Decode(data, p.record); err != nil {
			return err
		}
	}
	if p.Pace == nil {
		return nil
	}
	return p.Pace(len(data))
}

func (p *Proof) record(rec Record) error {
	switch rec := rec.(type) {
	case *Leaf:
		r := p.logs[rec.Tree]
		if r == nil {
			return fmt.Errorf("a leaf of log %d, which the manifest does not name", rec.Tree)
		}
		_, err := r.Add(rec, nil)
		return err
	case *IndexRow:
		p.index.Rows++
	case *Attestation:
		p.index.Attestations++
	}
	return nil
}

// End implements Check.
func (p *Proof) End() error {
	for _, l := range p.m.Logs {
		r := p.logs[l.Tree]
		root, err := r.Root()
		if err != nil {
			return err
		}
		if r.Size() != l.Size || hex.EncodeToString(root) != l.Root {
			return fmt.Errorf("log %s: %w: its entries make size %d, root %x, and the manifest says size %d, root %s", l.Name, ErrDamaged, r.Size(), root, l.Size, l.Root)
		}
	}
	if p.index != p.m.Index {
		return fmt.Errorf("search index: %w: %+v, and the manifest says %+v", ErrDamaged, p.index, p.m.Index)
	}
	return nil
}
