package trillian

import (
	"fmt"
	"sync"

	"github.com/google/trillian/types"

	"github.com/sigbox/sigbox/internal/anchor"
)

// sharedAnchors are the anchors of one replica of several: the logs grow without it too. What it anchors is the newest root that it
// has stored or shown itself.
type sharedAnchors struct {
	*guard
	// had tells whether a log has had a root.
	had func(tree int64, size uint64, hash []byte) (bool, error)

	// mu keeps an anchor as it is while a root is compared with it, and lets it go forward only.
	mu sync.Mutex
}

// Check implements postgres.Anchor: the newest root, which nobody can add to meanwhile, is the anchored one or has come after it.
func (a *sharedAnchors) Check(tree int64, root types.LogRootV1) error {
	if f := a.frozen(tree); f != nil {
		return f
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	was, err := a.anchors.Root(tree)
	if err == nil && (was.Hash == nil || root.TreeSize <= was.Size) {
		return a.guard.Check(tree, root)
	}
	if err == nil {
		if err := a.after(tree, was, root); err != nil {
			return err
		}
		err = a.anchors.Check(tree, was) // the file itself
	}
	if err != nil {
		a.freeze(tree, causeOf(err), err.Error(), nil)
		return a.frozen(tree)
	}
	return nil
}

// after freezes a log whose history does not have a root that was published.
func (a *sharedAnchors) after(tree int64, was anchor.Root, root types.LogRootV1) error {
	had, err := a.had(tree, was.Size, was.Hash)
	if err != nil {
		return err
	}
	if !had {
		a.freeze(tree, CauseDifferent, fmt.Sprintf("the storage has %v, and has never had %v, which was published: it has another history", anchorRoot(root), was), nil)
		return a.frozen(tree)
	}
	return nil
}

// Record implements postgres.Anchor. Of roots that come at once the newest stays.
func (a *sharedAnchors) Record(tree int64, root types.LogRootV1) error {
	if a.anchors == nil {
		return anchor.ErrMissing
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	was, err := a.anchors.Root(tree)
	if err != nil {
		return err
	}
	if was.Hash != nil && (root.TreeSize < was.Size || root.TreeSize == was.Size && root.TimestampNanos <= was.Timestamp) {
		return nil
	}
	return a.guard.Record(tree, root)
}

// Seen implements postgres.Anchor: a root that another replica made is anchored before this one shows it.
func (a *sharedAnchors) Seen(tree int64, root types.LogRootV1) error {
	if a.frozen(tree) != nil || a.anchors == nil {
		return nil // it is served to be read, and nothing is signed
	}
	was, err := a.anchors.Root(tree)
	if err != nil || was.Hash == nil || root.TreeSize <= was.Size {
		// An older one was read a moment ago, or else the next pass finds out.
		return nil
	}
	if err := a.after(tree, was, root); err != nil {
		return err
	}
	return a.Record(tree, root)
}
