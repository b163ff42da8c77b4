package trillian

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/trillian"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// replica is another process's configuration for the same database, with the
// anchors as the first had them.
func replica(t *testing.T, of Config, database string) Config {
	t.Helper()
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	cfg.Dir, cfg.Postgres, cfg.Instance = "", postgres.NewDSN(pgtest.Shared(t).DSN(database)), of.Instance
	copyTo(t, of.AnchorDir, cfg.AnchorDir)
	return cfg
}

// copyDatabase makes a copy of a database that nobody uses.
func copyDatabase(t *testing.T, from string) string {
	t.Helper()
	name := fmt.Sprintf("%s_%d", from, time.Now().UnixNano())
	pgtest.Shared(t).Exec(t, "postgres", fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s", name, from))
	return name
}

func write(t *testing.T, s *Service, id int64, values ...string) {
	t.Helper()
	for _, v := range values {
		if err := writeAndProve(s.Client(), id, v); err != nil {
			t.Fatalf("%s: %v", v, err)
		}
	}
}

func anchored(t *testing.T, s *Service, id int64) anchor.Root {
	t.Helper()
	st, err := s.State(id)
	must(t, err)
	return st.Anchored
}

// Each replica anchors what it has stored or shown, and a log that grew without
// it is the same log.
func TestReplicasAnchor(t *testing.T) {
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	cfg.Dir, cfg.Postgres = "", pgtest.Database(t)
	parsed, err := cfg.Postgres.Config()
	must(t, err)
	database := parsed.ConnConfig.Database
	a := create(t, cfg)
	id := createLog(t, a, 0)
	write(t, a, id, "a1")
	b := open(t, replica(t, cfg, database))
	write(t, b, id, "b1", "b2")
	if got := anchored(t, a, id).Size; got != 1 {
		t.Errorf("the first replica has anchored %d, and has shown 1", got)
	}
	// Showing anchors first.
	if _, err := a.Client().GetLatestSignedLogRoot(t.Context(), &trillian.GetLatestSignedLogRootRequest{LogId: id}); err != nil {
		t.Fatal(err)
	}
	if got := anchored(t, a, id).Size; got != 3 {
		t.Errorf("the first replica has shown 3 and anchored %d", got)
	}
	write(t, a, id, "a2")
	write(t, b, id, "b3")
	for _, s := range []*Service{a, b} {
		if f := s.Frozen(id); f != nil {
			t.Error(f)
		}
		r, err := s.Verify(t.Context(), id, nil)
		if err != nil || len(r.Findings) > 0 || r.Size != 5 {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// The database is put back from a copy, or replaced by one with another history:
// at the start, and behind the back of a replica that runs.
func TestDatabasePutBack(t *testing.T) {
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	cfg.Dir, cfg.Postgres = "", pgtest.Database(t)
	parsed, err := cfg.Postgres.Config()
	must(t, err)
	database := parsed.ConnConfig.Database
	s := create(t, cfg)
	id := createLog(t, s, 0)
	write(t, s, id, "1", "2")
	must(t, s.Close())
	old := copyDatabase(t, database)
	s = open(t, cfg)
	write(t, s, id, "3", "4")
	must(t, s.Close())

	t.Run("behind", func(t *testing.T) {
		s := open(t, replica(t, cfg, old))
		wantFrozen(t, s, id, CauseBehind)
	})
	t.Run("another history", func(t *testing.T) {
		fork := copyDatabase(t, old)
		other := replica(t, cfg, fork)
		folder, err := anchor.Open(other.AnchorDir, other.Instance)
		must(t, err)
		must(t, folder.Close())
		// Grown from the copy by somebody without the anchor.
		grow(t, fork, id, "x", "y", "z")
		s := open(t, other)
		wantFrozen(t, s, id, CauseDifferent)
	})
	t.Run("while it runs", func(t *testing.T) {
		running := copyDatabase(t, database)
		s := open(t, replica(t, cfg, running))
		write(t, s, id, "5")
		// As a failover to a standby that lags: the newest rows are gone.
		pgtest.Shared(t).Exec(t, running, `SET search_path = sigbox`, `SET session_replication_role = replica`,
			`DELETE FROM TreeHead WHERE TreeSize > 3`, `DELETE FROM SequencedLeafData WHERE SequenceNumber >= 3`)
		err := writeAndProve(s.Client(), id, "6")
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "frozen") {
			t.Errorf("written over: %v", err)
		}
		wantFrozen(t, s, id, CauseBehind)
	})
	t.Run("no anchor", func(t *testing.T) {
		lost := replica(t, cfg, database)
		lost.AnchorDir = filepath.Join(t.TempDir(), "none")
		s := open(t, lost)
		wantFrozen(t, s, id, CauseNoAnchor)
		must(t, s.Close())
		// There is a way on for who knows what was published.
		looked, err := Inspect(t.Context(), lost)
		must(t, err)
		st, err := looked.State(t.Context(), id)
		must(t, err)
		must(t, looked.Adopt(t.Context(), id, st.Size, st.Root, time.Now(), nil))
		must(t, looked.Close())
		s = open(t, lost)
		write(t, s, id, "after")
	})
}

func wantFrozen(t *testing.T, s *Service, id int64, cause Cause) {
	t.Helper()
	var f *Frozen
	if err := s.Frozen(id); !errors.As(err, &f) || f.Cause != cause {
		t.Fatalf("%v, want %s", err, cause)
	}
	if _, err := queue(t.Context(), s.Client(), id, "refused"); status.Code(err) != codes.Unavailable {
		t.Errorf("queued: %v", err)
	}
}

// grow adds to a log as a service without its anchors would.
func grow(t *testing.T, database string, id int64, values ...string) {
	t.Helper()
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	cfg.Dir, cfg.Postgres = "", postgres.NewDSN(pgtest.Shared(t).DSN(database))
	must(t, anchor.Create(cfg.AnchorDir))
	looked, err := Inspect(t.Context(), cfg)
	must(t, err)
	st, err := looked.State(t.Context(), id)
	must(t, err)
	must(t, looked.Adopt(t.Context(), id, st.Size, st.Root, time.Now(), nil))
	must(t, looked.Close())
	s, err := New(context.Background(), cfg)
	must(t, err)
	write(t, s, id, values...)
	must(t, s.Close())
}

// Damage in the tables is found and named.
func TestDamageInPostgres(t *testing.T) {
	cfg := config(t)
	cfg.SequenceInterval = time.Hour
	cfg.Dir, cfg.Postgres = "", pgtest.Database(t)
	parsed, err := cfg.Postgres.Config()
	must(t, err)
	database := parsed.ConnConfig.Database
	s := create(t, cfg)
	id := createLog(t, s, 0)
	for i := range 20 {
		write(t, s, id, fmt.Sprint("value ", i))
	}
	must(t, s.Close())
	for name, test := range map[string]struct{ statement, want string }{
		"value":   {`UPDATE LeafData SET LeafValue = set_byte(LeafValue, 0, get_byte(LeafValue, 0) # 1) WHERE LeafValue = 'value 7'`, "leaf 7"},
		"hash":    {`UPDATE SequencedLeafData SET MerkleLeafHash = set_byte(MerkleLeafHash, 5, get_byte(MerkleLeafHash, 5) # 1) WHERE SequenceNumber = 3`, "leaf 3"},
		"missing": {`DELETE FROM SequencedLeafData WHERE SequenceNumber = 11`, "leaf 11"},
		"no data": {`DELETE FROM LeafData WHERE LeafValue = 'value 2'`, "leaf 2"},
		"tile":    {`UPDATE Subtree SET Nodes = set_byte(Nodes, length(Nodes) - 20, get_byte(Nodes, length(Nodes) - 20) # 1)`, "node"},
		"root":    {`UPDATE TreeHead SET RootHash = set_byte(RootHash, 0, get_byte(RootHash, 0) # 1) WHERE TreeSize = 20`, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			damaged := copyDatabase(t, database)
			pgtest.Shared(t).Exec(t, damaged, `SET search_path = sigbox`, `SET session_replication_role = replica`, test.statement)
			looked, err := Inspect(t.Context(), replica(t, cfg, damaged))
			must(t, err)
			r, err := looked.Verify(t.Context(), id, nil)
			must(t, errors.Join(err, looked.Close()))
			found := false
			for _, f := range r.Findings {
				found = found || strings.Contains(f.String(), test.want)
			}
			if !found {
				t.Errorf("%v, want something about %q", r.Findings, test.want)
			}
		})
	}
}

// Replicas write, read and run their timed passes at once: nothing of that is
// taken for another history.
func TestReplicasAtOnce(t *testing.T) {
	cfg := config(t)
	cfg.Dir, cfg.Postgres, cfg.SequenceInterval = "", pgtest.Database(t), 5*time.Millisecond
	parsed, err := cfg.Postgres.Config()
	must(t, err)
	a := create(t, cfg)
	id := createLog(t, a, 10*time.Millisecond)
	other := replica(t, cfg, parsed.ConnConfig.Database)
	other.SequenceInterval = cfg.SequenceInterval
	b := open(t, other)
	run(t, a)
	run(t, b)
	var work sync.WaitGroup
	for w := range 8 {
		s := []*Service{a, b}[w%2]
		work.Go(func() {
			for i := range 25 {
				if err := writeAndProve(s.Client(), id, fmt.Sprintf("%d/%d", w, i)); err != nil {
					t.Errorf("%d/%d: %v", w, i, err)
					return
				}
			}
		})
	}
	work.Wait()
	for _, s := range []*Service{a, b} {
		if f := s.Frozen(id); f != nil {
			t.Error(f)
		}
	}
	if size, _, err := a.Size(t.Context(), id); err != nil || size != 200 {
		t.Errorf("size %d, %v", size, err)
	}
}
