package postgres

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"

	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// BenchmarkReplicas is sixteen writers, on one replica or spread over several.
func BenchmarkReplicas(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dsn := pgtest.Database(b)
			create(b, dsn)
			var replicas []*Storage
			for range n {
				replicas = append(replicas, open(b, dsn, onWrite))
			}
			tree := newTree(b, replicas[0])
			todo := make(chan string, b.N)
			for i := range b.N {
				value := make([]byte, 1024)
				rand.Read(value)
				todo <- fmt.Sprint(i, hex.EncodeToString(value))
			}
			close(todo)
			var wg sync.WaitGroup
			b.ResetTimer()
			for w := range 16 {
				wg.Go(func() {
					for value := range todo {
						if _, err := replicas[w%n].QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{newLeaf(value)}, time.Now()); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
