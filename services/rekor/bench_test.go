package rekor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sigstore/rekor/pkg/generated/models"
)

// BenchmarkCreate logs entries from several clients at a time, without the
// network between them and the handler.
func BenchmarkCreate(b *testing.B) {
	signer := newIdentity(b, "a@example.com")
	for _, kind := range []struct {
		name  string
		entry func(artifact []byte) models.ProposedEntry
	}{
		{"hashedrekord", func(a []byte) models.ProposedEntry { return signer.hashedrekord(b, a) }},
		{"dsse", func(a []byte) models.ProposedEntry { return signer.attestation(b, "dsse", "0.0.1", a) }},
	} {
		b.Run(kind.name, func(b *testing.B) {
			i := start(b, newConfig(b))
			bodies := make([]string, b.N)
			for n := range bodies {
				raw, err := json.Marshal(kind.entry(fmt.Append(nil, "artifact", n)))
				if err != nil {
					b.Fatal(err)
				}
				bodies[n] = string(raw)
			}
			var next atomic.Int64
			b.SetParallelism(16)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, createPath, strings.NewReader(bodies[next.Add(1)-1]))
					req.Header.Set("Content-Type", "application/json")
					rec := httptest.NewRecorder()
					i.Handler().ServeHTTP(rec, req)
					if rec.Code != http.StatusCreated {
						b.Errorf("%d %s", rec.Code, rec.Body)
						return
					}
				}
			})
		})
	}
}

// BenchmarkSearch looks for one entry.
func BenchmarkSearch(b *testing.B) {
	i := start(b, newConfig(b))
	i.create(newIdentity(b, "a@example.com").hashedrekord(b, []byte("artifact")))
	body := `{"hash":"` + sha256Hex([]byte("artifact")) + `"}`
	b.ReportAllocs()
	for b.Loop() {
		req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, indexPath, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		i.Handler().ServeHTTP(rec, req)
		if rec.Code != http.StatusOK {
			b.Fatal(rec.Code, rec.Body)
		}
	}
}
