package audit_test

import (
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
	if err := audit.CreatePostgres(t.Context(), pool, "an instance"); err != nil {
		t.Fatal(err)
	}
	if err := audit.CreatePostgres(t.Context(), pool, "an instance"); err == nil {
		t.Error("a second record was begun")
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

	seen := map[string]bool{}
	sum, err := replicas[0].Read(t.Context(), "an instance", func(r *audit.Record) error {
		seen[string(r.Fields)] = true
		return nil
	}, nil)
	end, errEnd := replicas[1].End(t.Context())
	if err != nil || errEnd != nil || len(seen) != writers*each+1 || sum.Records != writers*each+1 || sum.Head != end {
		t.Fatalf("%d events, %+v, %v, %v", len(seen), sum, err, errEnd)
	}
	if _, err := replicas[0].Read(t.Context(), "another", nil, nil); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("as another instance's: %v", err)
	}

	// A batch whose commit was not heard of is written once.
	for range 2 {
		if _, err := pool.Exec(t.Context(), `SELECT append_audit('batch', ARRAY['{"type":"x"}'])`); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := replicas[0].Read(t.Context(), "an instance", nil, nil); err != nil || sum.Records != writers*each+2 {
		t.Errorf("%+v, %v", sum, err)
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

	// Somebody who gets around the trigger is found out.
	for _, statement := range []string{
		`ALTER TABLE audit_line DISABLE TRIGGER append_only`,
		`UPDATE audit_line SET line = replace(line, '3/7', '7/3'), sum = sha256(convert_to(replace(line, '3/7', '7/3'), 'UTF8'))`,
	} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := replicas[1].Read(t.Context(), "an instance", nil, nil); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("changed: %v", err)
	}
}
