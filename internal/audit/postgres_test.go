package audit_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// Replicas write one chain.
func TestPostgres(t *testing.T) {
	pool, err := postgres.Open(t.Context(), postgres.NewDSN(pgtest.New(t).Database(t)), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := postgres.Create(t.Context(), pool, []postgres.Part{audit.Migrations}); err != nil {
		t.Fatal(err)
	}
	replicas := []*audit.Postgres{audit.OpenPostgres(pool), audit.OpenPostgres(pool)}
	const writers, each = 8, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				e := audit.Event{Type: audit.Issued, Service: "fulcio", Fields: map[string]any{"name": fmt.Sprintf("%d/%d ü<&>\u2028", w, n)}}
				if err := replicas[w%2].Append(t.Context(), e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()

	var out bytes.Buffer
	next, err := replicas[0].Export(t.Context(), &out, 1)
	if err != nil || next != writers*each+1 {
		t.Fatalf("next %d, %v", next, err)
	}
	prev := hex.EncodeToString(make([]byte, 32))
	seen := map[string]bool{}
	for line := range strings.Lines(out.String()) {
		var e struct {
			audit.Event
			Seq  int    `json:"seq"`
			Prev string `json:"prev"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Seq != len(seen)+1 || e.Prev != prev {
			t.Fatalf("line %d names %d and %s, want %s", len(seen)+1, e.Seq, e.Prev, prev)
		}
		sum := sha256.Sum256([]byte(line))
		prev = hex.EncodeToString(sum[:])
		seen[e.Fields["name"].(string)] = true
	}
	if len(seen) != writers*each {
		t.Errorf("%d events", len(seen))
	}

	// A batch whose commit was not heard of is written once.
	for range 2 {
		if _, err := pool.Exec(t.Context(), `SELECT append_audit('batch', ARRAY['{"type":"x"}'])`); err != nil {
			t.Fatal(err)
		}
	}
	if next, err = replicas[0].Export(t.Context(), &out, next); err != nil || next != writers*each+2 {
		t.Errorf("next %d, %v", next, err)
	}
	for _, statement := range []string{`DELETE FROM audit_line`, `UPDATE audit_line SET line = ''`, `TRUNCATE audit_line`} {
		if _, err := pool.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	if err := replicas[0].Close(); err != nil {
		t.Error(err)
	}
	if err := replicas[0].Append(t.Context(), audit.Event{}); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("after closing: %v", err)
	}
}
