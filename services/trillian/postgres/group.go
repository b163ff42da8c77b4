package postgres

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Bounds on what one commit gathers.
const (
	maxGroupLeaves = 512
	maxGroupBytes  = 8 << 20
	// fewLeaves are queued one by one: up to here that is quicker than a
	// temporary table.
	fewLeaves = 12
)

const (
	// patience is how long a group's callers are kept waiting for a server that
	// is away, or that has not said what became of a commit.
	patience = 8 * time.Second
	// attemptTimeout bounds one transaction, the wait for other replicas included.
	attemptTimeout = 8 * time.Second
)

// group gathers a tree's writers on this replica. The first of them to get the
// token queues, sequences and commits for all who wait; meanwhile the next
// group gathers. Between replicas the tree's lock goes round.
type group struct {
	token chan struct{}

	mu      sync.Mutex
	waiting []*request
}

// request is one caller's leaves on their way to a commit.
type request struct {
	tree    *trillian.Tree
	leaves  []*trillian.LogLeaf
	at      time.Time
	results []*trillian.QueuedLogLeaf
	err     error
	done    chan struct{} // closed once results or err is final
}

func (s *Storage) groupOf(treeID int64) *group {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[treeID]
	if g == nil {
		g = &group{token: make(chan struct{}, 1)}
		s.groups[treeID] = g
	}
	return g
}

// QueueLeaves returns once the leaves are durable: in the tree with sequencing
// on write, in the queue without. ctx ends the wait only as long as the leaves
// have not been taken up. An error says only that they are not known to be
// there.
func (s *Storage) QueueLeaves(ctx context.Context, tree *trillian.Tree, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	for i, l := range leaves {
		if len(l.GetLeafIdentityHash()) != hashSize || len(l.GetMerkleLeafHash()) != hashSize {
			return nil, status.Errorf(codes.InvalidArgument, "leaf %d: identity hash of %d bytes and Merkle leaf hash of %d, want %d",
				i, len(l.GetLeafIdentityHash()), len(l.GetMerkleLeafHash()), hashSize)
		}
	}
	if err := s.begin(); err != nil {
		return nil, s.answer(ctx, err)
	}
	defer s.work.Done()
	g := s.groupOf(tree.GetTreeId())
	r := &request{tree: tree, leaves: leaves, at: at, done: make(chan struct{})}
	g.mu.Lock()
	g.waiting = append(g.waiting, r)
	g.mu.Unlock()
	for {
		select {
		case <-r.done:
			return r.results, r.err
		case g.token <- struct{}{}:
			select {
			case <-r.done:
			default:
				s.lead(g)
			}
			<-g.token
		case <-ctx.Done():
			// What has been taken up will be answered, and its answer is the truth
			// about it.
			if g.withdraw(r) {
				return nil, s.answer(ctx, ctx.Err())
			}
			<-r.done
		}
	}
}

func (g *group) withdraw(r *request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, other := range g.waiting {
		if other == r {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// take removes what one commit can carry from those that wait. One request is
// always taken, whatever its size.
func (g *group) take() []*request {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, leaves, size := 0, 0, 0
	for _, r := range g.waiting {
		for _, l := range r.leaves {
			size += len(l.LeafValue) + len(l.ExtraData)
		}
		leaves += len(r.leaves)
		if n > 0 && (leaves > maxGroupLeaves || size > maxGroupBytes) {
			break
		}
		n++
	}
	taken := append([]*request(nil), g.waiting[:n]...)
	rest := copy(g.waiting, g.waiting[n:])
	clear(g.waiting[rest:])
	g.waiting = g.waiting[:rest]
	return taken
}

// lead commits one group and answers its members. The caller has the token.
func (s *Storage) lead(g *group) {
	taken := g.take()
	if len(taken) == 0 {
		return
	}
	// The work is the group's and does not end with the caller that leads it.
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := status.Error(codes.Internal, "the commit was interrupted")
	defer func() {
		for _, r := range taken {
			if err != nil {
				r.results, r.err = nil, err
			}
			close(r.done)
		}
	}()
	err = s.settle(ctx, taken)
}

// settle commits the group and finds out whether that succeeded. Where the
// connection broke, or the server gave up, the group is tried again: a leaf that
// the first attempt brought is waited for until the server knows what became of
// that, and then either found or stored now.
func (s *Storage) settle(ctx context.Context, taken []*request) error {
	open := false // an earlier attempt may have been committed
	for delay := 10 * time.Millisecond; ; delay = min(2*delay, 500*time.Millisecond) {
		attempt, cancel := context.WithTimeout(ctx, attemptTimeout)
		committing, err := s.commit(attempt, taken, open)
		cancel()
		if err == nil {
			return nil
		}
		if open = open || committing; !open && !passing(err) {
			return s.answer(ctx, err)
		}
		s.opts.Logger.Warn("entries could not be stored yet", slog.Int64("tree", taken[0].tree.GetTreeId()),
			slog.Bool("outcome_open", open), slog.Any("error", err))
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return status.Errorf(codes.Unavailable, "the entry is not known to be stored: %v", err)
		}
	}
}

// queuer is what the provider's transactions can do besides what Trillian's
// interface asks of them.
type queuer interface {
	QueueLeaf(ctx context.Context, leaf *trillian.LogLeaf, at time.Time) ([]*trillian.LogLeaf, error)
	QueueLeaves(ctx context.Context, leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.LogLeaf, error)
}

// commit stores the group's leaves. committing says that the outcome is open if
// there is an error.
func (s *Storage) commit(ctx context.Context, taken []*request, again bool) (committing bool, err error) {
	if s.opts.Sequence == nil {
		return s.enqueue(ctx, taken, again)
	}
	if !again {
		committing, more, err := s.sequenceNow(ctx, taken)
		if err == nil && more {
			return true, s.drain(ctx, taken[0].tree)
		}
		if !errors.Is(err, errBusy) {
			return committing, err
		}
	}
	if committing, err = s.enqueue(ctx, taken, again); err != nil {
		return committing, err
	}
	return true, s.drain(ctx, taken[0].tree)
}

// sequenceNow queues the leaves and sequences them in one transaction, if no
// other replica sequences the tree.
func (s *Storage) sequenceNow(ctx context.Context, taken []*request) (committing, more bool, err error) {
	tree := taken[0].tree
	committing, err = s.transact(ctx, trying, tree, func(ctx context.Context, tx storage.LogTreeTX) error {
		x := tx.(*writer)
		queued, err := x.queue(ctx, taken, false)
		if err != nil {
			return err
		}
		if err := x.sequence(ctx, tree, queued); err != nil {
			return err
		}
		more = x.more
		return nil
	})
	return committing, more, err
}

// enqueue leaves the leaves for whoever sequences next.
func (s *Storage) enqueue(ctx context.Context, taken []*request, again bool) (committing bool, err error) {
	return s.transact(ctx, unlocked, taken[0].tree, func(ctx context.Context, tx storage.LogTreeTX) error {
		_, err := tx.(*writer).queue(ctx, taken, again)
		return err
	})
}

// drain returns when everything that was queued before is sequenced, by this
// replica or another.
func (s *Storage) drain(ctx context.Context, tree *trillian.Tree) error {
	for more := true; more; {
		_, err := s.transact(ctx, draining, tree, func(ctx context.Context, tx storage.LogTreeTX) error {
			x := tx.(*writer)
			err := x.sequence(ctx, tree, maxGroupLeaves)
			more = x.more
			return err
		})
		if errors.Is(err, errDrained) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// queue puts the leaves into the queue, and an answer into each request. again
// says that a leaf that is there already may be the request's own.
func (x *writer) queue(ctx context.Context, taken []*request, again bool) (fresh int, err error) {
	if x.uninit {
		return 0, storage.ErrTreeNeedsInit
	}
	q, ok := x.LogTreeTX.(queuer)
	if !ok {
		return 0, status.Errorf(codes.Internal, "Trillian's provider has changed: no leaves can be queued by a %T", x.LogTreeTX)
	}
	first := map[string]*trillian.LogLeaf{} // by identity
	var distinct []*trillian.LogLeaf
	for _, r := range taken {
		for _, l := range r.leaves {
			if id := string(l.LeafIdentityHash); first[id] == nil {
				first[id] = l
				distinct = append(distinct, l)
			}
		}
	}
	// In one order on all replicas, or two that bring the same would wait for each
	// other.
	slices.SortFunc(distinct, func(a, b *trillian.LogLeaf) int { return bytes.Compare(a.LeafIdentityHash, b.LeafIdentityHash) })
	at := taken[0].at
	var existing []*trillian.LogLeaf
	if len(distinct) <= fewLeaves {
		for _, l := range distinct {
			known, err := q.QueueLeaf(ctx, l, at)
			if err != nil {
				return 0, x.note(err)
			}
			existing = append(existing, known[0])
		}
	} else if existing, err = q.QueueLeaves(ctx, distinct, at); err != nil {
		return 0, x.note(err)
	}
	known := map[string]*trillian.LogLeaf{}
	for i, l := range existing {
		switch {
		case l == nil:
			fresh++
		case again && own(l, distinct[i]):
		default:
			known[string(l.LeafIdentityHash)] = l
		}
	}
	for _, r := range taken {
		r.results = make([]*trillian.QueuedLogLeaf, len(r.leaves))
		for i, l := range r.leaves {
			was := known[string(l.LeafIdentityHash)]
			if brought := first[string(l.LeafIdentityHash)]; was == nil && brought != l {
				was = brought // by another request of the same group
			}
			if was == nil {
				r.results[i] = &trillian.QueuedLogLeaf{Leaf: l}
				continue
			}
			r.results[i] = &trillian.QueuedLogLeaf{Leaf: proto.Clone(was).(*trillian.LogLeaf), Status: alreadyExists}
		}
	}
	return fresh, nil
}

// own tells whether a stored leaf is the one that an earlier attempt brought.
func own(stored, brought *trillian.LogLeaf) bool {
	return stored.QueueTimestamp.AsTime().Equal(brought.QueueTimestamp.AsTime()) &&
		bytes.Equal(stored.LeafValue, brought.LeafValue) && bytes.Equal(stored.ExtraData, brought.ExtraData)
}

var alreadyExists = status.New(codes.AlreadyExists, "the log has a leaf of this identity").Proto()

// sequence integrates queued leaves in the open transaction.
func (x *writer) sequence(ctx context.Context, tree *trillian.Tree, queued int) (err error) {
	if x.uninit {
		return storage.ErrTreeNeedsInit
	}
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(codes.Internal, "sequencing panicked: %v\n%s", p, debug.Stack())
		}
	}()
	was := x.root.TreeSize
	if err := x.s.opts.Sequence(ctx, tree, bound{x.s, x}, queued); err != nil {
		return err
	}
	if queued > 0 && x.root.TreeSize == was {
		return errors.New("queued leaves were not sequenced")
	}
	return nil
}
