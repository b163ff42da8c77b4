package verify

import (
	"context"
	"time"

	"github.com/google/trillian/types"
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
	head, findings, err := src.Head(ctx)
	r := Result{Size: head.TreeSize, Root: head.RootHash, Findings: named(src, findings)}
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

// All computes the whole log anew, as it is now. progress, if set, is told how many leaves are done.
func All(ctx context.Context, src Source, progress func(done, size uint64)) (Result, error) {
	head, findings, err := src.Head(ctx)
	r := Result{Size: head.TreeSize, Root: head.RootHash, Findings: named(src, findings)}
	if err != nil {
		return r, err
	}
	w, err := New(ctx, src, 0)
	if err != nil {
		return r, err
	}
	for w.Next() < head.TreeSize && !w.Over() {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		n, err := w.Step(ctx, head.TreeSize, stepBytes)
		if err != nil {
			return r, err
		}
		r.Bytes += int64(n)
		if progress != nil {
			progress(w.Next(), head.TreeSize)
		}
	}
	return finish(ctx, src, w, head, r)
}

func finish(ctx context.Context, src Source, w *Walk, head types.LogRootV1, r Result) (Result, error) {
	if len(head.RootHash) > 0 {
		if err := w.CompareRoot(head.TreeSize, head.RootHash); err != nil {
			return r, err
		}
	}
	r.Leaves = w.Next()
	r.Findings = append(r.Findings, w.Findings...)
	if len(r.Findings) < MaxFindings {
		rest, err := src.Rest(ctx, head.TreeSize, func(int) error { return ctx.Err() })
		if err != nil {
			return r, err
		}
		r.Findings = append(r.Findings, named(src, rest)...)
	}
	return r, nil
}
