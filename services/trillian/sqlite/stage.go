package sqlite

import (
	"bytes"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/storage"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// stage takes one request's leaves into the transaction. It writes nothing, so that a request that is refused leaves no trace
// among the others of its group.
func (x *tx) stage(leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if x.now.slr == nil {
		return nil, storage.ErrTreeNeedsInit
	}
	queued := timestamppb.New(at)
	if err := queued.CheckValid(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "queue time: %v", err)
	}
	for i, l := range leaves {
		if err := checkSizes(i, l); err != nil {
			return nil, err
		}
	}
	results := make([]*trillian.QueuedLogLeaf, len(leaves))
	before := len(x.staged)
	for i, l := range leaves {
		known, err := x.known(l.LeafIdentityHash)
		if err != nil {
			x.staged = x.staged[:before]
			return nil, err
		}
		if known != nil {
			results[i] = &trillian.QueuedLogLeaf{Leaf: known, Status: alreadyExists}
			continue
		}
		l.QueueTimestamp = queued
		own := copyLeaf(l)
		own.LeafIndex, own.IntegrateTimestamp = 0, nil
		x.staged = append(x.staged, own)
		results[i] = &trillian.QueuedLogLeaf{Leaf: l}
	}
	return results, nil
}

var (
	alreadyExists = status.New(codes.AlreadyExists, "the log has a leaf of this identity").Proto()
	statusOK      = status.New(codes.OK, "OK").Proto()
)

func checkSizes(i int, l *trillian.LogLeaf) error {
	if len(l.GetLeafIdentityHash()) != hashSize || len(l.GetMerkleLeafHash()) != hashSize {
		return status.Errorf(codes.InvalidArgument, "leaf %d: identity hash of %d bytes and Merkle leaf hash of %d, want %d",
			i, len(l.GetLeafIdentityHash()), len(l.GetMerkleLeafHash()), hashSize)
	}
	return nil
}

// known returns the leaf of this identity that is staged, stored or queued.
func (x *tx) known(identity []byte) (*trillian.LogLeaf, error) {
	for _, l := range x.staged {
		if bytes.Equal(l.LeafIdentityHash, identity) {
			return copyLeaf(l), nil
		}
	}
	is := identityIs(identity)
	found, err := x.t.writer.leavesByHash(x.t.opts, identity, is)
	if err != nil {
		return nil, err
	}
	if len(found) > 0 {
		return found[0], nil
	}
	if x.t.queued == 0 {
		return nil, nil
	}
	s := x.t.queuedIn
	s.bindInt(1, prefix(identity))
	for {
		row, err := s.step()
		if err != nil || !row {
			return nil, err
		}
		l, err := s.leaf()
		if err != nil || is(l) {
			s.reset()
			return l, err
		}
	}
}

// addSequenced stores leaves of a pre-ordered log at the indices they come with.
func (x *tx) addSequenced(leaves []*trillian.LogLeaf, at time.Time) ([]*trillian.QueuedLogLeaf, error) {
	if x.now.slr == nil {
		return nil, storage.ErrTreeNeedsInit
	}
	queued := timestamppb.New(at)
	if err := queued.CheckValid(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "queue time: %v", err)
	}
	results := make([]*trillian.QueuedLogLeaf, len(leaves))
	for i, l := range leaves {
		if err := checkSizes(i, l); err != nil {
			return nil, err
		}
		var err error
		if results[i], err = x.conflict(l); err != nil {
			return nil, err
		}
		if results[i] != nil {
			continue
		}
		own := copyLeaf(l)
		own.QueueTimestamp, own.IntegrateTimestamp = queued, timestamp(0)
		if err := x.write(); err != nil {
			return nil, err
		}
		if err := x.store(own); err != nil {
			return nil, err
		}
		results[i] = &trillian.QueuedLogLeaf{Leaf: own, Status: statusOK}
	}
	return results, nil
}

// conflict is the answer about a leaf that can not be stored where it wants to be, or nil.
func (x *tx) conflict(l *trillian.LogLeaf) (*trillian.QueuedLogLeaf, error) {
	if l.LeafIndex < 0 {
		return &trillian.QueuedLogLeaf{Status: status.Newf(codes.OutOfRange, "leaf index %d", l.LeafIndex).Proto()}, nil
	}
	at, err := x.t.writer.leavesFrom(x.t.opts, l.LeafIndex, l.LeafIndex+1)
	if err != nil {
		return nil, err
	}
	if len(at) > 0 {
		if bytes.Equal(at[0].LeafIdentityHash, l.LeafIdentityHash) && bytes.Equal(at[0].MerkleLeafHash, l.MerkleLeafHash) {
			return &trillian.QueuedLogLeaf{Leaf: at[0], Status: alreadyExists}, nil
		}
		return &trillian.QueuedLogLeaf{Leaf: at[0], Status: status.Newf(codes.FailedPrecondition, "there is another leaf %d", l.LeafIndex).Proto()}, nil
	}
	known, err := x.known(l.LeafIdentityHash)
	if err != nil || known == nil {
		return nil, err
	}
	return &trillian.QueuedLogLeaf{Leaf: known, Status: status.New(codes.FailedPrecondition, "the log has a leaf of this identity at another index").Proto()}, nil
}
