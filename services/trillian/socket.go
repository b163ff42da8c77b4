package trillian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/google/trillian"
	"github.com/google/trillian/server/interceptor"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	socketName = "trillian.sock"
	// socketPort is only the end of a file's name. Rekor insists on a port.
	socketPort = 1
	// longestSocketPath is what fits the kernel's socket address with the zero byte that ends it.
	longestSocketPath = 107

	// A message is at most one entry and what belongs to it, or a page of entries.
	maxMessageBytes = 64 << 20
	stopTimeout     = 5 * time.Second
)

// socket is where Rekor finds the log server.
type socket struct {
	path      string // of the file, with the port
	temporary string // the folder made for it because the path would be too long
}

func newSocket(dir string) (socket, error) {
	if dir == "" {
		return socket{}, errors.New("no folder for the log server's socket")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return socket{}, err
	}
	s := socket{path: socketPath(dir)}
	if len(s.path) <= longestSocketPath {
		return s, nil
	}
	if s.temporary, err = os.MkdirTemp("", "sigbox-"); err != nil {
		return socket{}, fmt.Errorf("making a folder for the log server's socket: %w", err)
	}
	if s.path = socketPath(s.temporary); len(s.path) > longestSocketPath {
		return socket{}, errors.Join(
			fmt.Errorf("the paths of sockets in %s and in %s are longer than the %d bytes a socket address holds", dir, os.TempDir(), longestSocketPath),
			os.Remove(s.temporary),
		)
	}
	return s, nil
}

func socketPath(dir string) string {
	return filepath.Join(dir, fmt.Sprintf("%s:%d", socketName, socketPort))
}

func (s socket) address() (string, uint16) {
	// gRPC reads its target as a URL.
	dir := (&url.URL{Path: filepath.Dir(s.path)}).EscapedPath()
	return "unix://" + dir + "/" + socketName, socketPort
}

// listen makes the socket. One that is there already is a dead process's: the storage is locked, so nobody else serves it.
func (s socket) listen() (net.Listener, error) {
	dir := filepath.Dir(s.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of the log server's socket: %w", err)
	}
	// Whoever can connect can add entries, so the folder is the owner's also if it was there before.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("closing the folder of the log server's socket to others: %w", err)
	}
	switch st, err := os.Lstat(s.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is in the way of the log server's socket", s.path)
	default:
		if err := os.Remove(s.path); err != nil {
			return nil, fmt.Errorf("removing a stale socket: %w", err)
		}
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		return nil, fmt.Errorf("listening for Rekor: %w", err)
	}
	return l, nil
}

func newGRPCServer(log trillian.TrillianLogServer, logger *slog.Logger) *grpc.Server {
	s := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.ChainUnaryInterceptor(recoverPanics(logger), interceptor.ErrorWrapper),
	)
	trillian.RegisterTrillianLogServer(s, log)
	return s
}

// recoverPanics turns a panic into one caller's error. gRPC would let it end the process.
func recoverPanics(logger *slog.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
		defer func() {
			if p := recover(); p != nil {
				logger.Error("the log server panicked", slog.String("method", info.FullMethod), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
				err = status.Error(codes.Internal, "the log server panicked")
			}
		}()
		return handler(ctx, req)
	}
}

// stopServer lets calls finish, for a while.
func stopServer(s *grpc.Server) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.GracefulStop()
	}()
	select {
	case <-done:
	case <-time.After(stopTimeout):
		s.Stop()
		<-done
	}
}
