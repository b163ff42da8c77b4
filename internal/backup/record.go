// Package backup holds the format that an instance's state is carried in: a file for a backup, and an archive to which the entries of the logs
// are appended as they come. Both are made of the same records, so that a restored backup is rolled forward by going on reading.
//
// A log is carried as its entries, from which everything else about it is computed again: what is restored has been proven.
package backup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Leaf is an entry of a log, as it was sequenced. Its Merkle leaf hash is not carried but computed.
type Leaf struct {
	Tree  int64
	Index uint64
	// Queued and Integrated are in nanoseconds since 1970.
	Queued, Integrated int64
	// Identity is what the log knows duplicates by; nil is the Merkle leaf hash.
	Identity, Value, Extra []byte
}

// Root is a root that a log had after the leaves before it.
type Root struct {
	Tree      int64
	Size      uint64
	Timestamp uint64 // nanoseconds since 1970
	Hash      []byte
}

// IndexRow lets an entry be found by a key of the search index, of which the index keeps no more than a hash.
type IndexRow struct{ Key, Entry []byte }

// Attestation is kept beside the log under a key.
type Attestation struct {
	Key  string
	Body []byte
}

// Record is a Leaf, a Root, an IndexRow or an Attestation.
type Record interface {
	kind() byte
	fields() (numbers []uint64, blobs [][]byte)
	set(numbers []uint64, blobs [][]byte) error
}

func (*Leaf) kind() byte        { return 'L' }
func (*Root) kind() byte        { return 'R' }
func (*IndexRow) kind() byte    { return 'K' }
func (*Attestation) kind() byte { return 'A' }

func (l *Leaf) fields() ([]uint64, [][]byte) {
	return []uint64{uint64(l.Tree), l.Index, uint64(l.Queued), uint64(l.Integrated)}, [][]byte{l.Identity, l.Value, l.Extra}
}

func (l *Leaf) set(n []uint64, b [][]byte) error {
	if len(n) != 4 || len(b) != 3 {
		return ErrDamaged
	}
	*l = Leaf{int64(n[0]), n[1], int64(n[2]), int64(n[3]), b[0], b[1], b[2]}
	return nil
}

func (r *Root) fields() ([]uint64, [][]byte) {
	return []uint64{uint64(r.Tree), r.Size, r.Timestamp}, [][]byte{r.Hash}
}

func (r *Root) set(n []uint64, b [][]byte) error {
	if len(n) != 3 || len(b) != 1 {
		return ErrDamaged
	}
	*r = Root{int64(n[0]), n[1], n[2], b[0]}
	return nil
}

func (r *IndexRow) fields() ([]uint64, [][]byte) { return nil, [][]byte{r.Key, r.Entry} }

func (r *IndexRow) set(n []uint64, b [][]byte) error {
	if len(n) != 0 || len(b) != 2 {
		return ErrDamaged
	}
	*r = IndexRow{b[0], b[1]}
	return nil
}

func (a *Attestation) fields() ([]uint64, [][]byte) {
	return nil, [][]byte{[]byte(a.Key), a.Body}
}

func (a *Attestation) set(n []uint64, b [][]byte) error {
	if len(n) != 0 || len(b) != 2 {
		return ErrDamaged
	}
	*a = Attestation{string(b[0]), b[1]}
	return nil
}

// Errors of what is read.
var (
	// ErrDamaged: it does not hold what was written to it.
	ErrDamaged = errors.New("it is damaged")
	// ErrTorn: it ends in the middle of a record.
	ErrTorn = errors.New("it ends in the middle of a record")
	// ErrNewer: a later version of this program wrote it.
	ErrNewer = errors.New("it was written by a newer sigboxd")
)

// A record is its kind, the length of what follows, how many numbers and how many blobs there are, the numbers, the blobs each after its length plus
// one (zero is nil), and a checksum of all that.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Append encodes a record.
func Append(to []byte, r Record) []byte {
	numbers, blobs := r.fields()
	size := 2 + 10*(len(numbers)+len(blobs))
	for _, b := range blobs {
		size += len(b)
	}
	body := make([]byte, 0, size)
	body = append(body, byte(len(numbers)), byte(len(blobs)))
	for _, n := range numbers {
		body = binary.AppendUvarint(body, n)
	}
	for _, b := range blobs {
		if b == nil {
			body = append(body, 0)
			continue
		}
		body = append(binary.AppendUvarint(body, uint64(len(b))+1), b...)
	}
	start := len(to)
	to = append(to, r.kind())
	to = append(binary.AppendUvarint(to, uint64(len(body))), body...)
	return binary.LittleEndian.AppendUint32(to, crc32.Checksum(to[start:], castagnoli))
}

// Decode reads the records in data, which they share memory with, and returns how many bytes whole records took. An error of each ends it.
func Decode(data []byte, each func(Record) error) (whole int, err error) {
	for whole < len(data) {
		r, n, err := decode(data[whole:])
		if err != nil {
			return whole, fmt.Errorf("at byte %d: %w", whole, err)
		}
		if err := each(r); err != nil {
			return whole, err
		}
		whole += n
	}
	return whole, nil
}

func decode(data []byte) (Record, int, error) {
	var r Record
	switch data[0] {
	case 'L':
		r = new(Leaf)
	case 'R':
		r = new(Root)
	case 'K':
		r = new(IndexRow)
	case 'A':
		r = new(Attestation)
	default:
		return nil, 0, ErrDamaged
	}
	length, n := binary.Uvarint(data[1:])
	if n < 0 || length > 1<<40 {
		return nil, 0, ErrDamaged
	}
	end := 1 + n + int(length)
	if n == 0 || end+4 > len(data) {
		return nil, 0, ErrTorn
	}
	if binary.LittleEndian.Uint32(data[end:]) != crc32.Checksum(data[:end], castagnoli) {
		return nil, 0, ErrDamaged
	}
	numbers, blobs, err := split(data[1+n : end])
	if err == nil {
		err = r.set(numbers, blobs)
	}
	return r, end + 4, err
}

func split(body []byte) (numbers []uint64, blobs [][]byte, err error) {
	if len(body) < 2 {
		return nil, nil, ErrDamaged
	}
	counts := [2]int{int(body[0]), int(body[1])}
	body = body[2:]
	next := func() (uint64, bool) {
		v, n := binary.Uvarint(body)
		if n <= 0 {
			return 0, false
		}
		body = body[n:]
		return v, true
	}
	for range counts[0] {
		v, ok := next()
		if !ok {
			return nil, nil, ErrDamaged
		}
		numbers = append(numbers, v)
	}
	for range counts[1] {
		size, ok := next()
		if !ok || size > uint64(len(body))+1 {
			return nil, nil, ErrDamaged
		}
		if size == 0 {
			blobs = append(blobs, nil)
			continue
		}
		blobs = append(blobs, body[:size-1:size-1])
		body = body[size-1:]
	}
	if len(body) > 0 {
		return nil, nil, ErrDamaged
	}
	return numbers, blobs, nil
}
