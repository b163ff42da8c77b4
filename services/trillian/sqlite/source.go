package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"

	"github.com/sigbox/sigbox/internal/folder"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// restRows is how many rows of an index are read with one statement.
const restRows = 512

// Source is a tree as it is in its file, on a connection of its own: what is read through it comes from none of the storage's caches. It is used by
// one goroutine at a time.
type Source struct {
	id   int64
	path string
	opts *Options
	r    *reads
	// enter keeps a checkpoint from waiting for a statement, and a statement from running in a closed file.
	enter func() (leave func(), err error)
	// atRest: nobody writes, and nobody waits.
	atRest bool

	indexed, index, rows, queue *stmt
}

var _ verify.Source = (*Source)(nil)

// Source reads a tree beside those who use it. Close it before the storage.
func (s *Storage) Source(treeID int64) (*Source, error) {
	t, err := s.tree(treeID)
	if err != nil {
		return nil, answer(err)
	}
	r, err := t.openReader()
	if err != nil {
		return nil, fmt.Errorf("opening %s to examine: %w", t.path, err)
	}
	src := &Source{id: t.id, path: t.path, opts: t.opts, r: r, enter: func() (func(), error) {
		t.gate.RLock()
		if t.closed {
			t.gate.RUnlock()
			return nil, ErrClosed
		}
		return t.gate.RUnlock, nil
	}}
	return src, src.prepare()
}

// Inspection is a storage that is only read.
type Inspection struct {
	dir   string
	opts  Options
	lock  *os.File
	trees []int64
}

// Inspect opens the storage in dir, while no process uses it, without writing to it.
func Inspect(dir string, opts Options) (_ *Inspection, err error) {
	lock, err := take(dir, folder.LockToRead)
	if err != nil {
		return nil, err
	}
	i := &Inspection{dir: dir, opts: opts, lock: lock}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	path := treesPath(dir)
	c, err := treesFile.openAtRest(path)
	if err != nil {
		return nil, err
	}
	described, err := (&catalogue{c: c}).load()
	if err := errors.Join(err, c.close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, openError(err))
	}
	for id := range described {
		i.trees = append(i.trees, id)
	}
	return i, nil
}

// Trees lists the trees of the catalogue.
func (i *Inspection) Trees() []int64 { return i.trees }

// Source reads a tree.
func (i *Inspection) Source(treeID int64) (*Source, error) {
	path := treePath(i.dir, treeID)
	c, err := treeFile.openAtRest(path)
	if err != nil {
		return nil, err
	}
	r, err := prepareReads(c)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, errors.Join(openError(err), c.close()))
	}
	src := &Source{id: treeID, path: path, opts: &i.opts, r: r, atRest: true, enter: func() (func(), error) { return func() {}, nil }}
	if err := src.prepare(); err != nil {
		return nil, err
	}
	if stored, err := c.number("SELECT id FROM tree"); err != nil || stored != treeID {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, errors.Join(err, ErrForeign)), src.Close())
	}
	return src, nil
}

// Close gives the storage free.
func (i *Inspection) Close() error { return i.lock.Close() }

func (s *Source) prepare() (err error) {
	for _, p := range []struct {
		to  **stmt
		sql string
	}{
		{&s.indexed, "SELECT 1 FROM hashes WHERE prefix = ?1 AND leaf = ?2"},
		{&s.index, "SELECT prefix, leaf, substr(merkle, 1, 8), substr(identity, 1, 8) FROM hashes LEFT JOIN leaves ON idx = leaf WHERE (prefix, leaf) > (?1, ?2) ORDER BY prefix, leaf LIMIT ?3"},
		{&s.rows, "SELECT chunk, root, sum, length(hashes) FROM nodes WHERE chunk > ?1 ORDER BY chunk LIMIT ?2"},
		{&s.queue, "SELECT 0, queued, 0, merkle, identity, value, extra, sum, id, prefix FROM queue WHERE id > ?1 ORDER BY id LIMIT ?2"},
	} {
		if *p.to, err = s.r.c.prepare(p.sql); err != nil {
			return errors.Join(fmt.Errorf("opening %s to examine: %w", s.path, openError(err)), s.Close())
		}
	}
	return nil
}

// Name implements verify.Source, as do the methods below.
func (s *Source) Name() (tree int64, file string) { return s.id, s.path }

// Close ends the connection.
func (s *Source) Close() error {
	if s.r == nil {
		return nil
	}
	err := s.r.c.close()
	s.r = nil
	return err
}

// do runs f, which leaves no statement unfinished, and marks the errors that say that the file is damaged.
func (s *Source) do(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	leave, err := s.enter()
	if err != nil {
		return err
	}
	defer leave()
	if err := f(); damage(err) {
		return fmt.Errorf("%w: %w", verify.ErrUnreadable, err)
	} else if err != nil {
		return fmt.Errorf("reading %s: %w", s.path, err)
	}
	return nil
}

// Head reads the newest row of nodes.
func (s *Source) Head(ctx context.Context) (root types.LogRootV1, found []verify.Finding, err error) {
	err = s.do(ctx, func() error {
		q := s.r.newest
		row, err := q.step()
		if err != nil || !row {
			return err
		}
		chunk, nodes, stored, sum := uint64(q.columnInt(0)), len(q.columnBlob(1)), q.columnBlob(2), q.columnInt(3)
		q.reset()
		total := chunk*chunkNodes + uint64(nodes/hashSize)
		switch {
		case sum != rootSum(chunk, stored):
			found = append(found, verify.About(verify.RootRow, "the log root in node row %d is not as it was written", chunk))
		case len(stored) == 0:
		default:
			if err := root.UnmarshalBinary(stored); err != nil {
				found = append(found, verify.About(verify.RootRow, "the log root in node row %d: %v", chunk, err))
				return nil
			}
			if nodes%hashSize != 0 || total != nodesIn(root.TreeSize) {
				found = append(found, verify.About(verify.Node, "there are %d for a tree of size %d, want %d", total, root.TreeSize, nodesIn(root.TreeSize)))
			}
		}
		return nil
	})
	return root, found, err
}

// Leaves reads rows, and looks each of them up in the index.
func (s *Source) Leaves(ctx context.Context, start, end uint64, limit int) (leaves []verify.Leaf, err error) {
	err = s.do(ctx, func() error {
		leaves = nil
		q := s.r.byIndex
		q.bindInt(1, int64(start))
		q.bindInt(2, int64(end))
		type looked struct{ value, stored, identity []byte }
		var hashes []looked
		for size := 0; size < limit; {
			row, err := q.step()
			if err != nil {
				return err
			}
			if !row {
				break
			}
			l := q.rawLeaf()
			out := verify.Leaf{Index: uint64(l.LeafIndex), Value: l.LeafValue, Hash: l.MerkleLeafHash, Bytes: leafBytes(l)}
			look := looked{s.opts.HashLeaf(l.LeafValue), l.MerkleLeafHash, l.LeafIdentityHash}
			if q.columnInt(7) != leafSum(l) {
				out.Findings = append(out.Findings, verify.AboutLeaf(verify.LeafFields, out.Index, "its times, identity or extra data are not as they were written"))
				look.identity = l.MerkleLeafHash
			}
			leaves, hashes = append(leaves, out), append(hashes, look)
			size += out.Bytes
		}
		q.reset()
		for i, h := range hashes {
			l := &leaves[i]
			// One of value and hash may have changed since, and then says so itself.
			found, err := s.lookUp(l.Index, h.value, h.stored)
			if err == nil && found && !bytes.Equal(h.identity, h.stored) {
				found, err = s.lookUp(l.Index, h.identity)
			}
			if err != nil {
				return err
			}
			if !found {
				l.Findings = append(l.Findings, verify.AboutLeaf(verify.LeafIndex, l.Index, "it is not found by its hashes"))
			}
		}
		return nil
	})
	return leaves, err
}

func (s *Source) lookUp(leaf uint64, hashes ...[]byte) (bool, error) {
	for _, h := range hashes {
		if len(h) != hashSize {
			continue
		}
		s.indexed.bindInt(1, prefix(h))
		s.indexed.bindInt(2, int64(leaf))
		row, err := s.indexed.step()
		if err != nil {
			return false, err
		}
		if row {
			s.indexed.reset()
			return true, nil
		}
	}
	return false, nil
}

// Nodes reads each row once, if the nodes come in the order of the file.
func (s *Source) Nodes(ctx context.Context, ids []compact.NodeID) (hashes [][]byte, err error) {
	hashes = make([][]byte, len(ids))
	err = s.do(ctx, func() error {
		no, chunk := uint64(0), []byte(nil)
		for i, id := range ids {
			pos, err := position(id)
			if err != nil {
				return err
			}
			if chunk == nil || pos/chunkNodes != no {
				no = pos / chunkNodes
				q := s.r.chunk
				q.bindInt(1, int64(no))
				row, err := q.step()
				if err != nil {
					return err
				}
				chunk = []byte{}
				if row {
					chunk = q.columnBlob(0)
					q.reset()
				}
			}
			if at := pos % chunkNodes * hashSize; at+hashSize <= uint64(len(chunk)) {
				hashes[i] = hashAt(chunk, pos)
			}
		}
		return nil
	})
	return hashes, err
}

// Rest examines the index of hashes, the roots beside the nodes and the queue. pace is told of the work as it is done.
func (s *Source) Rest(ctx context.Context, size uint64, pace func(bytes int) error) (found []verify.Finding, err error) {
	for _, part := range []func(context.Context, uint64, func(int) error) ([]verify.Finding, error){s.restOfIndex, s.restOfRows, s.restOfQueue, s.restOfFile} {
		more, err := part(ctx, size, pace)
		if errors.Is(err, verify.ErrUnreadable) {
			more, err = append(more, verify.About(verify.File, "%v", err)), nil
		}
		found = append(found, more...)
		if err != nil || len(found) >= verify.MaxFindings {
			return found, err
		}
	}
	return found, nil
}

// restOfIndex looks for rows of the index that lead to no leaf, or to another.
func (s *Source) restOfIndex(ctx context.Context, size uint64, pace func(int) error) (found []verify.Finding, err error) {
	// No leaf has an index below zero, so that the first row comes after this one.
	lastPrefix, lastLeaf := int64(-1<<63), int64(-1)
	for rows := restRows; rows == restRows; {
		err := s.do(ctx, func() error {
			rows = 0
			q := s.index
			q.bindInt(1, lastPrefix)
			q.bindInt(2, lastLeaf)
			q.bindInt(3, restRows)
			for {
				row, err := q.step()
				if err != nil || !row {
					return err
				}
				rows++
				lastPrefix, lastLeaf = q.columnInt(0), q.columnInt(1)
				if lastLeaf >= 0 && uint64(lastLeaf) >= size {
					continue // not examined this time
				}
				merkle, identity := q.columnBlob(2), q.columnBlob(3)
				if len(merkle) == 8 && prefix(merkle) == lastPrefix || len(identity) == 8 && prefix(identity) == lastPrefix {
					continue
				}
				found = append(found, verify.AboutLeaf(verify.LeafIndex, uint64(lastLeaf), "a hash that begins with %016x is not the leaf's", uint64(lastPrefix)))
				if len(found) >= verify.MaxFindings {
					q.reset()
					rows = 0
					return nil
				}
			}
		})
		if err == nil {
			err = pace(rows * 128)
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

func (s *Source) restOfRows(ctx context.Context, _ uint64, pace func(int) error) (found []verify.Finding, err error) {
	last := int64(-1)
	for rows := restRows; rows == restRows; {
		err := s.do(ctx, func() error {
			rows = 0
			q := s.rows
			q.bindInt(1, last)
			q.bindInt(2, restRows)
			for {
				row, err := q.step()
				if err != nil || !row {
					return err
				}
				rows++
				last = q.columnInt(0)
				if q.columnInt(2) != rootSum(uint64(last), q.columnBlob(1)) {
					found = append(found, verify.About(verify.RootRow, "the log root in node row %d is not as it was written", last))
				}
			}
		})
		if err == nil {
			err = pace(rows * pageSize)
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

func (s *Source) restOfQueue(ctx context.Context, _ uint64, pace func(int) error) (found []verify.Finding, err error) {
	last := int64(-1 << 63)
	for rows := 64; rows == 64; {
		size := 0
		err := s.do(ctx, func() error {
			rows = 0
			q := s.queue
			q.bindInt(1, last)
			q.bindInt(2, 64)
			for {
				row, err := q.step()
				if err != nil || !row {
					return err
				}
				rows++
				l, err := q.leaf()
				last = q.columnInt(8)
				if err == nil {
					size += leafBytes(l)
					if err = s.opts.checkHash(l); err == nil && q.columnInt(9) != prefix(l.LeafIdentityHash) {
						err = fmt.Errorf("%w: it can not be found by its identity", ErrDamaged)
					}
				}
				if err != nil {
					found = append(found, verify.About(verify.Queue, "entry %d: %v", last, err))
				}
			}
		})
		if err == nil {
			err = pace(size)
		}
		if err != nil {
			return found, err
		}
	}
	return found, nil
}

// restOfFile has SQLite look at its own structures, which takes as long as reading the file.
func (s *Source) restOfFile(ctx context.Context, _ uint64, _ func(int) error) (found []verify.Finding, err error) {
	if !s.atRest {
		return nil, nil
	}
	return found, s.do(ctx, func() error {
		said, err := s.r.c.value("PRAGMA quick_check(1)")
		if err == nil && said != "ok" {
			found = append(found, verify.About(verify.File, "%s", said))
		}
		return err
	})
}
