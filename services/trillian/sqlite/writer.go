package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Bounds on what one commit gathers.
const (
	maxGroupLeaves = 512
	maxGroupBytes  = 8 << 20
)

// writer is a tree's only writing connection. Whoever has put something into token may use it.
//
// Commits are shared: a caller with leaves puts them up in waiting, and the first one to get the token queues, sequences and commits all
// that wait there. While it waits for the disk the next group gathers, so that load makes groups larger and not
// the wait longer.
type writer struct {
	*reads
	token chan struct{}
	ended chan struct{} // closed when the tree is: the token is not coming back

	begin, commit, rollback                       *stmt
	insertLeaf, insertHash, insertNodes           *stmt
	enqueue, dequeue, unqueue, queuedIn, queueLen *stmt

	queued int64 // rows in the queue

	mu      sync.Mutex
	waiting []*queueRequest
}

// queueRequest is one caller's leaves on their way to a commit.
type queueRequest struct {
	tree    *trillian.Tree
	leaves  []*trillian.LogLeaf
	at      time.Time
	results []*trillian.QueuedLogLeaf
	err     error
	done    chan struct{} // closed once results or err is final
}

func (w *writer) prepare(c *conn) error {
	r, err := prepareReads(c)
	if err != nil {
		return err
	}
	w.reads = r
	w.token = make(chan struct{}, 1)
	w.ended = make(chan struct{})
	for _, p := range []struct {
		to  **stmt
		sql string
	}{
		{&w.begin, "BEGIN IMMEDIATE"},
		{&w.commit, "COMMIT"},
		{&w.rollback, "ROLLBACK"},
		{&w.insertLeaf, "INSERT INTO leaves (" + leafColumns + ") VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"},
		{&w.insertHash, "INSERT INTO hashes (prefix, leaf) VALUES (?1, ?2)"},
		{&w.insertNodes, "INSERT OR REPLACE INTO nodes (chunk, hashes, root, sum) VALUES (?1, ?2, ?3, ?4)"},
		{&w.enqueue, "INSERT INTO queue (queued, prefix, merkle, identity, value, extra, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"},
		// The first eight columns are read as a leaf's; the index is not known yet.
		{&w.dequeue, "SELECT 0, queued, 0, merkle, identity, value, extra, sum, id FROM queue WHERE id > ?1 AND queued <= ?2 ORDER BY id LIMIT ?3"},
		{&w.queuedIn, "SELECT 0, queued, 0, merkle, identity, value, extra, sum FROM queue WHERE prefix = ?1"},
		{&w.unqueue, "DELETE FROM queue WHERE id = ?1"},
		{&w.queueLen, "SELECT count(*) FROM queue"},
	} {
		if *p.to, err = c.prepare(p.sql); err != nil {
			return err
		}
	}
	w.queued, err = w.countQueue()
	return err
}

func (w *writer) countQueue() (int64, error) {
	row, err := w.queueLen.step()
	if err != nil || !row {
		return 0, err
	}
	n := w.queueLen.columnInt(0)
	w.queueLen.reset()
	return n, nil
}

// readHead reads the tree's state from the newest row of nodes.
func (w *writer) readHead() (*head, error) {
	row, err := w.newest.step()
	if err != nil {
		return nil, err
	}
	if !row {
		return &head{}, nil
	}
	chunk, tail, root := uint64(w.newest.columnInt(0)), w.newest.columnBlob(1), w.newest.columnBlob(2)
	w.newest.reset()
	if len(tail)%hashSize != 0 || len(tail) >= chunkNodes*hashSize {
		return nil, fmt.Errorf("%w: node row %d has %d bytes", ErrDamaged, chunk, len(tail))
	}
	h := &head{nodes: chunk*chunkNodes + uint64(len(tail)/hashSize), tail: tail}
	if len(root) == 0 {
		return h, nil
	}
	h.slr = &trillian.SignedLogRoot{LogRoot: root}
	if err := h.root.UnmarshalBinary(root); err != nil {
		return nil, fmt.Errorf("%w: reading the log root: %w", ErrDamaged, err)
	}
	return h, nil
}

// acquire waits for the right to write.
func (t *tree) acquire(ctx context.Context) error {
	select {
	case t.token <- struct{}{}:
	case <-t.ended:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := t.stop.reason(); err != nil {
		<-t.token
		return err
	}
	return nil
}

// yield gives the right to write back, after keeping the write-ahead log within its bound.
func (t *tree) yield() {
	t.limitWAL()
	<-t.token
}

// queue adds leaves to the queue or, with sequencing on write, to the tree, and returns once that is durable.
func (t *tree) queue(ctx context.Context, treeInfo *trillian.Tree, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if err := t.stop.reason(); err != nil {
		return nil, err
	}
	r := &queueRequest{tree: treeInfo, leaves: leaves, at: at, done: make(chan struct{})}
	t.mu.Lock()
	t.waiting = append(t.waiting, r)
	t.mu.Unlock()
	for {
		select {
		case <-r.done:
			return r.results, r.err
		case t.token <- struct{}{}:
			select {
			case <-r.done:
				<-t.token
			default:
				t.lead()
			}
		case <-t.ended:
			if t.withdraw(r) {
				return nil, ErrClosed
			}
			<-r.done
		case <-ctx.Done():
			// What has been taken up will be answered, and its answer is the truth about it.
			if t.withdraw(r) {
				return nil, ctx.Err()
			}
			<-r.done
		}
	}
}

func (w *writer) withdraw(r *queueRequest) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, other := range w.waiting {
		if other == r {
			w.waiting = append(w.waiting[:i], w.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// group takes what one commit can carry from those that wait. One request is always taken, whatever its size.
func (w *writer) group() []*queueRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, leaves, size := 0, 0, 0
	for _, r := range w.waiting {
		for _, l := range r.leaves {
			size += leafBytes(l)
		}
		leaves += len(r.leaves)
		if n > 0 && (leaves > maxGroupLeaves || size > maxGroupBytes || r.tree.TreeType != w.waiting[0].tree.TreeType) {
			break
		}
		n++
	}
	group := append([]*queueRequest(nil), w.waiting[:n]...)
	rest := copy(w.waiting, w.waiting[n:])
	clear(w.waiting[rest:])
	w.waiting = w.waiting[:rest]
	return group
}

var errInterrupted = status.Error(codes.Internal, "the commit was interrupted")

// lead commits one group and answers its members. The caller has the token, which lead gives back.
func (t *tree) lead() {
	defer t.yield()
	group := t.group()
	if len(group) == 0 {
		return
	}
	defer func() {
		for _, r := range group {
			if r.err == nil && r.results == nil {
				r.err = errInterrupted
			}
			close(r.done)
		}
	}()
	err := t.stop.reason()
	if err == nil {
		err = t.commitGroup(group)
	}
	if err != nil {
		for _, r := range group {
			r.results, r.err = nil, err
		}
	}
}

// commitGroup sets each request's results, or its own error. The error it returns is everybody's.
func (t *tree) commitGroup(group []*queueRequest) error {
	x := t.newTX(group[0].tree)
	defer x.end()
	for _, r := range group {
		if r.results, r.err = x.stage(r.leaves, r.at); r.err != nil && (!recoverable(r.err) || damage(r.err)) {
			return x.fail(r.err)
		}
	}
	if len(x.staged) == 0 {
		return nil
	}
	if t.opts.Sequence != nil {
		staged := x.staged // sequencing takes from it what it has done
		if err := t.sequence(x, group[0].tree); err != nil {
			switch err := x.fail(err); {
			case x.damaged != nil:
				return x.damaged
			case !recoverable(err):
				return err
			}
			t.opts.Logger.Warn("sequencing on write failed: the entries wait for the next timed pass",
				slog.Int64("tree", t.id), slog.Int("entries", len(staged)), slog.Any("error", err))
			x = t.newTX(group[0].tree)
			defer x.end()
			x.staged = staged
		}
	}
	return x.commit()
}

// sequence integrates the staged leaves in the open transaction.
func (t *tree) sequence(x *tx, treeInfo *trillian.Tree) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "sequencing panicked: %v\n%s", p, debug.Stack())
		}
	}()
	staged := len(x.staged)
	// The work is the group's and does not end with the caller that happens to lead it.
	if err := t.opts.Sequence(context.Background(), treeInfo, boundStorage{t.opts.storage, x}, staged); err != nil {
		return err
	}
	err = x.check()
	x.note(&err)
	return err
}

// readWrite runs f in a transaction of its own.
func (t *tree) readWrite(ctx context.Context, treeInfo *trillian.Tree, f storage.LogTXFunc) error {
	if err := t.acquire(ctx); err != nil {
		return err
	}
	defer t.yield()
	x := t.newTX(treeInfo)
	defer x.end()
	if err := f(ctx, x); err != nil {
		return x.fail(err)
	}
	t.report(x.damaged) // which f may have kept to itself
	return x.commit()
}

// undo rolls back and makes sure that the state is the one before the transaction. That is the proof on which a full
// disk is a refusal and not the end.
func (t *tree) undo() error {
	if t.writer.c.inTransaction() {
		if err := t.rollback.run(); err != nil {
			return fmt.Errorf("rolling back: %w", err)
		}
	}
	if t.writer.c.inTransaction() {
		return errors.New("the transaction can not be rolled back")
	}
	now, err := t.readHead()
	if err != nil {
		return fmt.Errorf("reading the state after rolling back: %w", err)
	}
	was := t.head.Load()
	if now.nodes != was.nodes || !bytes.Equal(now.tail, was.tail) || !bytes.Equal(now.slr.GetLogRoot(), was.slr.GetLogRoot()) {
		return fmt.Errorf("%w: the state after rolling back is not the one before", ErrDamaged)
	}
	if t.queued, err = t.countQueue(); err != nil {
		return fmt.Errorf("counting the queue after rolling back: %w", err)
	}
	return nil
}
