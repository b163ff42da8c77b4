package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"google.golang.org/protobuf/proto"
)

// freshness is how long a tree's description is believed: each call of the log
// server begins by asking for it.
const freshness = time.Second

// catalogue remembers descriptions of trees for a moment.
type catalogue struct {
	storage.AdminStorage
	now func() time.Time

	mu    sync.Mutex
	trees map[int64]described
}

type described struct {
	tree *trillian.Tree
	at   time.Time
}

func newCatalogue(s storage.AdminStorage) *catalogue {
	return &catalogue{AdminStorage: s, now: time.Now, trees: map[int64]described{}}
}

// Snapshot begins a transaction only when something is asked of it that is not
// remembered.
func (c *catalogue) Snapshot(context.Context) (storage.ReadOnlyAdminTX, error) {
	return &look{c: c}, nil
}

// ReadWriteTransaction forgets what may have been changed.
func (c *catalogue) ReadWriteTransaction(ctx context.Context, f storage.AdminTXFunc) error {
	forget := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		clear(c.trees)
	}
	forget()
	defer forget()
	return c.AdminStorage.ReadWriteTransaction(ctx, f)
}

// look is a transaction that begins late. Like all transactions it is one
// goroutine's.
type look struct {
	c  *catalogue
	tx storage.ReadOnlyAdminTX
}

func (l *look) begin(ctx context.Context) (err error) {
	if l.tx == nil {
		l.tx, err = l.c.AdminStorage.Snapshot(ctx)
	}
	return err
}

func (l *look) GetTree(ctx context.Context, id int64) (*trillian.Tree, error) {
	l.c.mu.Lock()
	d, ok := l.c.trees[id]
	l.c.mu.Unlock()
	if age := l.c.now().Sub(d.at); ok && age >= 0 && age < freshness {
		return proto.Clone(d.tree).(*trillian.Tree), nil
	}
	at := l.c.now()
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	tree, err := l.tx.GetTree(ctx, id)
	if err != nil {
		return nil, err
	}
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.c.trees[id] = described{proto.Clone(tree).(*trillian.Tree), at}
	return tree, nil
}

func (l *look) ListTrees(ctx context.Context, deleted bool) ([]*trillian.Tree, error) {
	if err := l.begin(ctx); err != nil {
		return nil, err
	}
	return l.tx.ListTrees(ctx, deleted)
}

func (l *look) Commit() error {
	if l.tx == nil {
		return nil
	}
	return l.tx.Commit()
}

func (l *look) Close() error {
	if l.tx == nil {
		return nil
	}
	return l.tx.Close()
}
