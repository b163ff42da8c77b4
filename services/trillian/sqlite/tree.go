package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// maxReaders bounds the connections that read a tree's file at a time.
const maxReaders = 4

// tree is the file of one log.
type tree struct {
	id   int64
	path string
	opts *Options
	stop *stop

	// head is what readers see: the newest committed, fsynced and anchored state.
	head   atomic.Pointer[head]
	chunks chunkCache
	recent recentLeaves

	// gate is held for reading by whoever has a read transaction in the file, which is never longer than one statement, and
	// for writing by a checkpoint that must find nobody in the way.
	gate   sync.RWMutex
	closed bool
	free   chan *reads
	slots  chan struct{}

	writer
	checkpointer
}

// head is a state of a tree. It is never changed, and neither is what a later one has in common with it.
type head struct {
	slr   *trillian.SignedLogRoot // nil before the tree is initialised
	root  types.LogRootV1
	nodes uint64
	tail  []byte // the hashes of the last chunk, which is not full
}

func treePath(dir string, id int64) string { return fmt.Sprintf("%s/tree-%d.db", dir, id) }

func createTree(path string, id int64) error {
	return treeFile.create(path, func(c *conn) error {
		return c.exec(fmt.Sprintf("INSERT INTO tree (id) VALUES (%d)", id))
	})
}

func openTree(path string, id int64, opts *Options, stop *stop) (_ *tree, err error) {
	c, err := treeFile.open(path)
	if err != nil {
		return nil, err
	}
	t := &tree{
		id: id, path: path, opts: opts, stop: stop,
		free:  make(chan *reads, maxReaders),
		slots: make(chan struct{}, maxReaders),
	}
	defer func() {
		if err != nil {
			c.leaveWAL()
			err = fmt.Errorf("opening %s: %w", path, errors.Join(openError(err), c.close()))
		}
	}()
	stored, err := c.number("SELECT id FROM tree")
	if err != nil {
		return nil, err
	}
	if stored != id {
		return nil, fmt.Errorf("%w: it is of tree %d", ErrForeign, stored)
	}
	if err := t.writer.prepare(c); err != nil {
		return nil, err
	}
	h, err := t.writer.readHead()
	if err != nil {
		return nil, err
	}
	t.head.Store(h)
	if err := t.checkpointer.start(t); err != nil {
		return nil, err
	}
	return t, nil
}

// computeRoot is the root of the tree by its stored nodes.
func (h *head) computeRoot(hash func(pos uint64) ([]byte, error)) ([]byte, error) {
	ids := compact.RangeNodes(0, h.root.TreeSize, nil)
	if len(ids) == 0 {
		return rfc6962.DefaultHasher.EmptyRoot(), nil
	}
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		pos, err := position(id)
		if err != nil {
			return nil, err
		}
		if hashes[i], err = hash(pos); err != nil {
			return nil, err
		}
	}
	fact := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
	cr, err := fact.NewRange(0, h.root.TreeSize, hashes)
	if err != nil {
		return nil, err
	}
	return cr.GetRootHash(nil)
}

// sound compares the two forms of the root, the one that is handed out to be signed with the one that was checked.
func (h *head) sound() error {
	var root types.LogRootV1
	if err := root.UnmarshalBinary(h.slr.LogRoot); err != nil {
		return fmt.Errorf("%w: reading the log root in memory: %w", ErrDamaged, err)
	}
	if root.TreeSize != h.root.TreeSize || root.TimestampNanos != h.root.TimestampNanos || !bytes.Equal(root.RootHash, h.root.RootHash) {
		return fmt.Errorf("%w: two log roots in memory: size %d, root %x and size %d, root %x",
			ErrDamaged, root.TreeSize, root.RootHash, h.root.TreeSize, h.root.RootHash)
	}
	return nil
}

// report tells whoever wants to know that the file is damaged.
func (t *tree) report(err error) {
	if t.opts.Damaged != nil && damage(err) {
		t.opts.Damaged(t.id, fmt.Errorf("%s: %w", t.path, err))
	}
}

// answer is the answer to a caller of the log server.
func (t *tree) answer(err error) error {
	t.report(err)
	return answer(err)
}

// hash returns the node at a position, from the tail or from a full chunk.
func (h *head) hash(pos uint64, cached func(uint64) []byte, stored func(uint64) ([]byte, error)) ([]byte, error) {
	no := pos / chunkNodes
	switch {
	case pos >= h.nodes:
		return nil, fmt.Errorf("node %d of %d", pos, h.nodes)
	case no == h.nodes/chunkNodes:
		return hashAt(h.tail, pos), nil
	}
	chunk := cached(no)
	if chunk == nil {
		var err error
		if chunk, err = stored(no); err != nil {
			return nil, err
		}
	}
	return hashAt(chunk, pos), nil
}

// read runs f on a connection of the pool. f leaves no statement unfinished.
func (t *tree) read(ctx context.Context, f func(*reads) error) error {
	t.gate.RLock()
	defer t.gate.RUnlock()
	if t.closed {
		return ErrClosed
	}
	r, err := t.borrow(ctx)
	if err != nil {
		return err
	}
	defer func() { t.free <- r }()
	return f(r)
}

func (t *tree) borrow(ctx context.Context) (*reads, error) {
	select {
	case r := <-t.free:
		return r, nil
	default:
	}
	select {
	case r := <-t.free:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case t.slots <- struct{}{}:
	}
	r, err := t.openReader()
	if err != nil {
		<-t.slots
		return nil, fmt.Errorf("opening %s to read: %w", t.path, err)
	}
	return r, nil
}

func (t *tree) openReader() (*reads, error) {
	c, err := openConn(t.path, true)
	if err != nil {
		return nil, err
	}
	// Writes elsewhere void a reader's page cache, so that a bigger one would hold no more.
	err = c.exec("PRAGMA query_only = ON; PRAGMA cache_size = -512; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	r, err := prepareReads(c)
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	return r, nil
}

// close waits for whoever is at work. After a fatal error the files are left as they are.
func (t *tree) close() error {
	close(t.ended)
	t.writer.token <- struct{}{} // never given back: nobody writes again
	t.checkpointer.halt()
	t.gate.Lock()
	defer t.gate.Unlock()
	t.closed = true
	keep := t.stop.reason() != nil
	var errs []error
	closeConn := func(c *conn) {
		if keep {
			c.leaveWAL()
		}
		errs = append(errs, c.close())
	}
	for len(t.free) > 0 {
		closeConn((<-t.free).c)
	}
	closeConn(t.checkpointer.c)
	// The last connection to close moves the log into the database.
	closeConn(t.writer.c)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing %s: %w", t.path, err)
	}
	return nil
}
