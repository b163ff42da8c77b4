package trillian

import (
	"context"
	"errors"
	"sync"

	"github.com/google/trillian"
	"github.com/google/trillian/server"
	servererrors "github.com/google/trillian/server/errors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// client is the log server as a client, by direct calls.
type client struct {
	server *server.TrillianLogRPCServer

	// open is held for reading by each call, and for writing by close.
	open   sync.RWMutex
	closed bool
}

var _ trillian.TrillianLogClient = (*client)(nil)

// close waits for the calls in flight.
func (c *client) close() {
	c.open.Lock()
	defer c.open.Unlock()
	c.closed = true
}

// call does what gRPC and the server's interceptor would: errors get a status, and a call that nobody waits for is not begun.
func call[Request, Response any](ctx context.Context, c *client, method func(context.Context, Request) (Response, error), in Request) (out Response, err error) {
	c.open.RLock()
	defer c.open.RUnlock()
	if c.closed {
		return out, status.Error(codes.Unavailable, "the log server is closed")
	}
	if err := ctx.Err(); err != nil {
		return out, status.FromContextError(err).Err()
	}
	if out, err = method(ctx, in); err == nil {
		return out, nil
	}
	var none Response
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return none, status.FromContextError(err).Err()
	}
	return none, servererrors.WrapError(err)
}

// QueueLeaf implements trillian.TrillianLogClient, as do the methods below.
func (c *client) QueueLeaf(ctx context.Context, in *trillian.QueueLeafRequest, _ ...grpc.CallOption) (*trillian.QueueLeafResponse, error) {
	return call(ctx, c, c.server.QueueLeaf, in)
}

func (c *client) GetInclusionProof(ctx context.Context, in *trillian.GetInclusionProofRequest, _ ...grpc.CallOption) (*trillian.GetInclusionProofResponse, error) {
	return call(ctx, c, c.server.GetInclusionProof, in)
}

func (c *client) GetInclusionProofByHash(ctx context.Context, in *trillian.GetInclusionProofByHashRequest, _ ...grpc.CallOption) (*trillian.GetInclusionProofByHashResponse, error) {
	return call(ctx, c, c.server.GetInclusionProofByHash, in)
}

func (c *client) GetConsistencyProof(ctx context.Context, in *trillian.GetConsistencyProofRequest, _ ...grpc.CallOption) (*trillian.GetConsistencyProofResponse, error) {
	return call(ctx, c, c.server.GetConsistencyProof, in)
}

func (c *client) GetLatestSignedLogRoot(ctx context.Context, in *trillian.GetLatestSignedLogRootRequest, _ ...grpc.CallOption) (*trillian.GetLatestSignedLogRootResponse, error) {
	return call(ctx, c, c.server.GetLatestSignedLogRoot, in)
}

func (c *client) GetEntryAndProof(ctx context.Context, in *trillian.GetEntryAndProofRequest, _ ...grpc.CallOption) (*trillian.GetEntryAndProofResponse, error) {
	return call(ctx, c, c.server.GetEntryAndProof, in)
}

func (c *client) InitLog(ctx context.Context, in *trillian.InitLogRequest, _ ...grpc.CallOption) (*trillian.InitLogResponse, error) {
	return call(ctx, c, c.server.InitLog, in)
}

func (c *client) AddSequencedLeaves(ctx context.Context, in *trillian.AddSequencedLeavesRequest, _ ...grpc.CallOption) (*trillian.AddSequencedLeavesResponse, error) {
	return call(ctx, c, c.server.AddSequencedLeaves, in)
}

func (c *client) GetLeavesByRange(ctx context.Context, in *trillian.GetLeavesByRangeRequest, _ ...grpc.CallOption) (*trillian.GetLeavesByRangeResponse, error) {
	return call(ctx, c, c.server.GetLeavesByRange, in)
}
