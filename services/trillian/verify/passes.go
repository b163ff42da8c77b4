package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

// stepBytes is how much one read of a file takes.
const stepBytes = 256 << 10

// block is how many leaves the proof at start takes at a time. A power of two makes its nodes a whole subtree.
const block = 256

// Result is what a walk through a log found.
type Result struct {
	Size     uint64    `json:"size"`
	Root     []byte    `json:"-"`
	Leaves   uint64    `json:"leaves"` // how many of the newest were computed anew
	Bytes    int64     `json:"bytes"`
	Findings []Finding `json:"findings,omitempty"`
}

// Recent computes the newest leaves of a log anew, newest first, until it has been through that many or the time is up. The root is always
// computed.
func Recent(ctx context.Context, src Source, leaves uint64, budget time.Duration) (Result, error) {
	begun := time.Now()
	head, findings, err := headOf(ctx, src)
	r := Result{Size: head.TreeSize, Root: head.RootHash, Findings: findings}
	if err != nil || len(findings) > 0 || len(head.RootHash) == 0 {
		return r, err
	}
	end := head.TreeSize
	for first := true; first || end > 0 && r.Leaves < leaves && time.Since(begun) < budget; first = false {
		start := uint64(0)
		if end > 0 {
			start = (end - 1) / block * block
		}
		w, err := New(ctx, src, start)
		if err != nil {
			return r, err
		}
		for w.Next() < end && !w.Over() {
			n, err := w.Step(ctx, end, stepBytes)
			if err != nil {
				return r, err
			}
			r.Bytes += int64(n)
		}
		if first {
			if err := w.CompareRoot(head.TreeSize, head.RootHash); err != nil {
				return r, err
			}
		}
		r.Leaves += w.Next() - start
		r.Findings = append(r.Findings, w.Findings...)
		if end = start; len(r.Findings) > 0 {
			break
		}
	}
	return r, nil
}

func headOf(ctx context.Context, src Source) (types.LogRootV1, []Finding, error) {
	head, findings, err := src.Head(ctx)
	if errors.Is(err, ErrUnreadable) {
		findings, err = append(findings, About(File, "%v", err)), nil
	}
	return head, named(src, findings), err
}

// All computes the whole log anew, as it is now. progress, if set, is told how many leaves are done.
func All(ctx context.Context, src Source, progress func(done, size uint64)) (Result, error) {
	return Paced(ctx, src, progress, func(int) error { return ctx.Err() })
}

// Paced is All for somebody with time: pace is told how many bytes were read since it was called last. Its error ends the pass.
func Paced(ctx context.Context, src Source, progress func(done, size uint64), pace func(bytes int) error) (Result, error) {
	head, findings, err := headOf(ctx, src)
	r := Result{Size: head.TreeSize, Root: head.RootHash, Findings: findings}
	if err != nil {
		return r, err
	}
	w, err := New(ctx, src, 0)
	if err != nil {
		return r, err
	}
	for w.Next() < head.TreeSize && !w.Over() {
		n, err := w.Step(ctx, head.TreeSize, stepBytes)
		r.Bytes += int64(n)
		if err == nil {
			err = pace(n)
		}
		if err != nil {
			return r, err
		}
		if progress != nil {
			progress(w.Next(), head.TreeSize)
		}
	}
	if len(head.RootHash) > 0 {
		if err := w.CompareRoot(head.TreeSize, head.RootHash); err != nil {
			return r, err
		}
	}
	r.Leaves = w.Next()
	r.Findings = append(r.Findings, w.Findings...)
	if len(r.Findings) < MaxFindings {
		rest, err := src.Rest(ctx, head.TreeSize, pace)
		r.Findings = append(r.Findings, named(src, rest)...)
		if err != nil {
			return r, err
		}
	}
	return r, nil
}

// Extends proves that a tree has grown out of an older one of the same log: that the older root is reproduced by what is stored.
func Extends(ctx context.Context, src Source, oldSize uint64, oldRoot []byte, size uint64, root []byte) error {
	if oldSize == 0 {
		// Every tree grows out of the empty one.
		if !bytes.Equal(oldRoot, rfc6962.DefaultHasher.EmptyRoot()) {
			return fmt.Errorf("%x is not the root of the empty tree", oldRoot)
		}
		return nil
	}
	needed, err := proof.Consistency(oldSize, size)
	if err != nil {
		return err
	}
	hashes, err := src.Nodes(ctx, needed.IDs)
	if err != nil {
		return err
	}
	for i, h := range hashes {
		if h == nil {
			return fmt.Errorf("%w: node %d at level %d is missing", ErrUnreadable, needed.IDs[i].Index, needed.IDs[i].Level)
		}
	}
	if hashes, err = needed.Rehash(hashes, rfc6962.DefaultHasher.HashChildren); err != nil {
		return err
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, oldSize, size, hashes, oldRoot, root)
}
