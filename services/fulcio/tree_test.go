package fulcio_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/trillian"

	trillianservice "github.com/sigbox/sigbox/services/trillian"
)

// tree is a log on a log server of its own.
type tree struct {
	client trillian.TrillianLogClient
	id     int64
}

// newTree runs a real log server, with its storage on disk, for the test's time.
func newTree(t testing.TB) tree {
	t.Helper()
	dir := t.TempDir()
	cfg := trillianservice.Config{
		Dir:             filepath.Join(dir, "logs"),
		AnchorDir:       filepath.Join(dir, "anchor"),
		Instance:        "instance",
		SocketDir:       t.TempDir(),
		SequenceOnWrite: true,
		Logger:          quiet,
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := trillianservice.Create(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	s, err := trillianservice.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.CreateLog(ctx, trillianservice.LogOptions{Name: "ct", MaxRootDuration: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree{s.Client(), id}
}
