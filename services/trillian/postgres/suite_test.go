package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/trillian/extension"
	trillianintegration "github.com/google/trillian/integration"
	"github.com/google/trillian/integration/storagetest"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	storagetesting "github.com/google/trillian/storage/testonly"
	"github.com/google/trillian/testonly/integration"
	"github.com/jackc/pgx/v5"

	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

func TestUpstreamLogStorage(t *testing.T) {
	storagetest.RunLogStorageTests(t, func(_ context.Context, t *testing.T) (storage.LogStorage, storage.AdminStorage) {
		s := newStorage(t, Options{})
		return s, s.Admin()
	})
}

func TestUpstreamAdminStorage(t *testing.T) {
	tester := storagetesting.AdminStorageTester{NewAdminStorage: func() storage.AdminStorage {
		return newStorage(t, Options{}).Admin()
	}}
	tester.RunAllTests(t)
}

func TestUpstreamLogIntegration(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"timed", Options{}},
		{"on write", onWrite},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStorage(t, test.opts)
			registry := extension.Registry{AdminStorage: s.Admin(), LogStorage: s, QuotaManager: quota.Noop()}
			env, err := integration.NewLogEnvWithRegistry(t.Context(), 1, registry)
			if err != nil {
				t.Fatal(err)
			}
			defer env.Close()
			tree := newTree(t, s)
			params := trillianintegration.DefaultTestParameters(tree.TreeId)
			if err := trillianintegration.RunLogIntegration(env.Log, params); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// The provider finds in our schema what it finds in its own.
func TestSchemaIsTheProviders(t *testing.T) {
	theirs := pgtest.Shared(t).Database(t)
	module, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/trillian").Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(module)), "storage", "postgresql", "schema", "storage.sql"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := pgx.Connect(t.Context(), theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if _, err := c.Exec(t.Context(), string(text), pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	want := columns(t, c, "public")

	s := newStorage(t, Options{})
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	got := columns(t, conn.Conn(), "sigbox")
	for _, col := range want {
		if !slices.Contains(got, col) {
			t.Errorf("the provider's schema has %s, ours has not", col)
		}
	}
	if len(want) < 30 || len(got)-len(want) != 3 { // schema_version
		t.Errorf("%d columns, the provider's schema has %d", len(got), len(want))
	}
}

func columns(t *testing.T, c *pgx.Conn, schema string) []string {
	rows, err := c.Query(t.Context(), `SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = $1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	var table, column, kind string
	var all []string
	if _, err := pgx.ForEachRow(rows, []any{&table, &column, &kind}, func() error {
		if kind == "USER-DEFINED" {
			kind = "text" // an enumeration, ours is a CHECK
		}
		all = append(all, fmt.Sprintf("%s.%s %s", table, column, strings.ToLower(kind)))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
