package trillian

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"testing"
	"time"

	"github.com/google/trillian"
)

// BenchmarkEntry is what an entry of Rekor asks of the log server: to be queued, then its proof and its leaf.
func BenchmarkEntry(b *testing.B) {
	for _, test := range []struct {
		name   string
		client func(*Service) trillian.TrillianLogClient
	}{
		{"direct", (*Service).Client},
		{"socket", func(s *Service) trillian.TrillianLogClient { return dial(b, s) }},
	} {
		b.Run(test.name, func(b *testing.B) {
			cfg := config(b)
			cfg.Logger = nil
			cfg.SequenceInterval = time.Second
			s := create(b, cfg)
			run(b, s)
			id := createLog(b, s, 0)
			c := test.client(s)
			b.SetParallelism(8)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				value := make([]byte, 1536)
				for pb.Next() {
					rand.Read(value)
					if err := writeAsRekor(c, id, base64.StdEncoding.EncodeToString(value)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

func writeAsRekor(c trillian.TrillianLogClient, id int64, value string) error {
	if err := writeAndProve(c, id, value); err != nil {
		return err
	}
	_, err := c.GetLatestSignedLogRoot(context.Background(), &trillian.GetLatestSignedLogRootRequest{LogId: id})
	return err
}
