package appliance_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
	"github.com/sigbox/sigbox/internal/state"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// newDSN makes an empty database and the file that says how to connect to it.
func newDSN(t *testing.T) (file, dsn string) {
	t.Helper()
	file, dsn = filepath.Join(t.TempDir(), "dsn"), pgtest.Shared(t).Database(t)
	if err := os.WriteFile(file, []byte(dsn), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, dsn
}

func onDatabase(dsnFile string) string {
	return fmt.Sprintf("storage: {engine: postgres, dsn_file: %s}\n", dsnFile)
}

// TestInitUndoesTheDatabase when it fails half-way.
func TestInitUndoesTheDatabase(t *testing.T) {
	file, dsn := newDSN(t)
	blocker := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocker, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "instance")
	init := func(more string) error {
		conf := "url: http://127.0.0.1:1\nlisten: 127.0.0.1:1\n" + onDatabase(file) + more
		_, err := appliance.Init(t.Context(), dir, []byte(conf), time.Now(), slog.New(slog.DiscardHandler))
		return err
	}
	if err := init("keys: {dir: " + blocker + "/keys}\n"); err == nil {
		t.Fatal("init passed")
	}
	if err := state.Claim(dir); err != nil {
		t.Errorf("the folder is not free for another try: %v", err)
	}
	pool, err := postgres.Open(t.Context(), postgres.NewDSN(dsn), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := postgres.CheckSchema(t.Context(), pool, nil); !errors.Is(err, postgres.ErrEmpty) {
		t.Errorf("the database is not free for another try: %v", err)
	}
	if err := init(""); err != nil {
		t.Fatal(err)
	}
	dir += "2"
	if err := init(""); !errors.Is(err, postgres.ErrExists) {
		t.Errorf("a second instance: %v", err)
	}
	if err := state.Claim(dir); err != nil {
		t.Errorf("the folder of the second is not free: %v", err)
	}
	if st, err := appliance.AskStatus(t.Context(), dir[:len(dir)-1]); err != nil || st.Running || st.ID == "" || len(st.Expiries) != 4 {
		t.Errorf("status of what does not run: %+v, %v", st, err)
	}
	// What an interrupted init leaves is not served.
	if _, err := pool.Exec(t.Context(), `DELETE FROM instance`); err != nil {
		t.Fatal(err)
	}
	if _, err := appliance.Open(t.Context(), dir[:len(dir)-1], slog.New(slog.DiscardHandler)); !errors.Is(err, appliance.ErrHalfMade) {
		t.Errorf("half-made: %v", err)
	}
}

// TestTUFIsRenewedInTheDatabase, and the version that clients have seen is there
// after a restart.
func TestTUFIsRenewedInTheDatabase(t *testing.T) {
	file, _ := newDSN(t)
	dir, url := initialise(t, time.Now().Add(-4*24*time.Hour), onDatabase(file))
	stop := serve(t, dir)
	if version, expires := tufVersion(t, url); version != 2 || time.Until(expires) < 6*24*time.Hour {
		t.Errorf("version %d, expires %v", version, expires)
	}
	stop()
	serve(t, dir)
	if version, _ := tufVersion(t, url); version != 2 {
		t.Errorf("after a restart: version %d, want 2", version)
	}
}
