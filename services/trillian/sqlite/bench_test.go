package sqlite

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/trillian"
	trillianlog "github.com/google/trillian/log"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/util/clock"
)

// benchLeaf is like an entry of Rekor: two kilobytes, no extra data, identified by its Merkle leaf hash.
func benchLeaf() *trillian.LogLeaf {
	value := make([]byte, 2048)
	rand.Read(value)
	hash := hashLeaf(value)
	return &trillian.LogLeaf{LeafValue: value, MerkleLeafHash: hash, LeafIdentityHash: hash}
}

// BenchmarkIngest is the time per leaf until it is in the tree and durable, with 16 writers, with an anchor beside the database and without.
func BenchmarkIngest(b *testing.B) {
	for _, name := range []string{"on write", "on write, anchored", "timed", "timed, anchored"} {
		b.Run(name, func(b *testing.B) {
			mode, anchored, _ := strings.Cut(name, ", ")
			opts := Options{HashLeaf: hashLeaf}
			if mode == "on write" {
				opts = onWrite
			}
			if anchored != "" {
				opts.Anchor = newAnchors(b)
			}
			s := newStorage(b, b.TempDir(), opts)
			tree := newTree(b, s)
			before, err := s.Usage(tree.TreeId)
			if err != nil {
				b.Fatal(err)
			}
			stop := sequenceEvery(b, s, tree, 10*time.Millisecond, mode == "timed")
			b.SetParallelism(8)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{benchLeaf()}, time.Now()); err != nil {
						b.Error(err)
						return
					}
				}
			})
			for latest(b, s, tree).TreeSize < uint64(b.N) {
				time.Sleep(time.Millisecond)
			}
			b.StopTimer()
			stop()
			if err := mustTree(b, s, tree).emptyWAL(); err != nil {
				b.Fatal(err)
			}
			after, err := s.Usage(tree.TreeId)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(after-before)/float64(b.N), "disk-B/leaf")
		})
	}
}

// BenchmarkQueueToIntegrated is the time from queueing one leaf until a reader finds it, one at a time. Timed passes are 50 ms apart.
func BenchmarkQueueToIntegrated(b *testing.B) {
	for _, name := range []string{"on write", "on write, anchored", "timed"} {
		b.Run(name, func(b *testing.B) {
			mode, anchored, _ := strings.Cut(name, ", ")
			opts := Options{HashLeaf: hashLeaf}
			if mode == "on write" {
				opts = onWrite
			}
			if anchored != "" {
				opts.Anchor = newAnchors(b)
			}
			s := newStorage(b, b.TempDir(), opts)
			tree := newTree(b, s)
			stop := sequenceEvery(b, s, tree, 50*time.Millisecond, mode == "timed")
			defer stop()
			var times []time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				l := benchLeaf()
				start := time.Now()
				if _, err := s.QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{l}, start); err != nil {
					b.Fatal(err)
				}
				for {
					snap, err := s.SnapshotForTree(context.Background(), tree)
					if err != nil {
						b.Fatal(err)
					}
					found, err := snap.GetLeavesByHash(context.Background(), [][]byte{l.MerkleLeafHash}, true)
					if err != nil {
						b.Fatal(err)
					}
					if len(found) == 1 {
						break
					}
					time.Sleep(time.Millisecond)
				}
				times = append(times, time.Since(start))
			}
			b.StopTimer()
			slices.Sort(times)
			for _, p := range []int{50, 95} {
				b.ReportMetric(float64(times[(len(times)-1)*p/100].Microseconds()), fmt.Sprintf("p%d-µs", p))
			}
		})
	}
}

// sequenceEvery runs passes in the background, if there are to be any, until the function it returns is called.
func sequenceEvery(b *testing.B, s *Storage, tree *trillian.Tree, interval time.Duration, any bool) func() {
	if !any {
		return func() {}
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			if _, err := trillianlog.IntegrateBatch(context.Background(), tree, 1000, 0, 0, clock.System, s, quota.Noop()); err != nil {
				b.Error(err)
				return
			}
			time.Sleep(interval)
		}
	}()
	return func() {
		stop.Store(true)
		<-done
	}
}
