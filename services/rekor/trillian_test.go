package rekor

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/sigbox/sigbox/services/trillian"
)

// logServer is a Trillian with one tree.
type logServer struct {
	tree    int64
	address string
	port    uint16
	stop    func()
}

// createLog makes a log in dir and serves it until the test ends.
func createLog(t testing.TB, dir string) logServer {
	t.Helper()
	cfg := logConfig(dir)
	if err := trillian.Create(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	s, err := trillian.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.CreateLog(t.Context(), trillian.LogOptions{Name: "rekor"})
	if err != nil {
		t.Fatal(err)
	}
	return serveLog(t, s, tree)
}

// reopenLog serves what createLog made, once that is stopped.
func reopenLog(t testing.TB, dir string, tree int64) logServer {
	t.Helper()
	s, err := trillian.New(t.Context(), logConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	return serveLog(t, s, tree)
}

func logConfig(dir string) trillian.Config {
	return trillian.Config{
		Dir: filepath.Join(dir, "logs"), AnchorDir: filepath.Join(dir, "anchor"), Instance: "instance", SocketDir: filepath.Join(dir, "run"), SequenceOnWrite: true,
	}
}

func serveLog(t testing.TB, s *trillian.Service, tree int64) logServer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-ran:
		t.Fatalf("the log server ended: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the log server is not ready after 20 s")
	}
	l := logServer{tree: tree}
	l.address, l.port = s.RekorAddress()
	stopped := false
	l.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { l.stop() })
	return l
}
