package appliance

import (
	"context"
	"crypto"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
	"github.com/sigbox/sigbox/tuf"
)

// Of replicas that renew at once one does, and the others serve what it made.
func TestOneReplicaRenews(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(file, []byte(pgtest.Shared(t).Database(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := connect(t.Context(), &config.Config{Storage: config.Storage{Engine: config.Postgres, DSNFile: file}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := postgres.Create(t.Context(), db.pool, schemaParts); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	role := func() tuf.Role {
		key, err := keys.Generate()
		if err != nil {
			t.Fatal(err)
		}
		return tuf.Role{Signers: []crypto.Signer{key}, Threshold: 1}
	}
	snapshot, timestamp := role(), role()
	first, err := tuf.Create(tuf.Config{Root: role(), Targets: role(), Snapshot: snapshot, Timestamp: timestamp, Now: now.Add(-4 * 24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	table := tufTable{db}
	if err := table.create(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	const replicas = 4
	var wg sync.WaitGroup
	made := make([]*tuf.Repository, replicas)
	for n := range replicas {
		wg.Go(func() {
			var err error
			made[n], err = table.renew(t.Context(), first, func(r *tuf.Repository) (*tuf.Repository, error) {
				return r.Renew(now, tuf.Renewal{Snapshot: snapshot.Signers, Timestamp: timestamp.Signers})
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	newest, err := table.newest(context.Background(), first)
	if err != nil || newest == first {
		t.Fatalf("the first one is still there, %v", err)
	}
	for n, r := range made {
		if string(r.Files()[timestampFile]) != string(newest.Files()[timestampFile]) {
			t.Errorf("replica %d made another", n)
		}
	}
	if again, err := table.newest(t.Context(), newest); again != newest || err != nil {
		t.Errorf("read again without need, %v", err)
	}
}
