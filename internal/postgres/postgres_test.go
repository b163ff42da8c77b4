package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

func TestTLS(t *testing.T) {
	for _, test := range []struct {
		dsn    string
		secure bool // TLS that verifies the host
		refuse string
	}{
		{dsn: "postgres://u:p@db.example/sigbox", secure: true},
		{dsn: "postgres://u:p@db.example:5432/sigbox?application_name=x", secure: true},
		{dsn: "host=db.example user=u dbname=sigbox", secure: true},
		{dsn: "host=10.0.0.1 user=u dbname=sigbox", secure: true},
		{dsn: "postgres://u@127.0.0.1,db.example/sigbox", secure: true},
		{dsn: "postgres://u@db.example/sigbox?sslmode=verify-full", secure: true},
		{dsn: "postgres://u@127.0.0.1/sigbox"},
		{dsn: "postgres://u@[::1]/sigbox?sslmode=disable"},
		{dsn: "host=/run/postgresql user=u dbname=sigbox sslmode=disable"},
		{dsn: "postgres:///sigbox?host=/run/postgresql&user=u"},
		{dsn: "postgres://u@db.example/sigbox?sslmode=disable", refuse: "no TLS"},
		{dsn: "postgres://u@db.example/sigbox?sslmode=allow", refuse: "verify-full"},
		{dsn: "postgres://u@db.example/sigbox?sslmode=prefer", refuse: "verify-full"},
		{dsn: "postgres://u@db.example/sigbox?sslmode=require", refuse: "verify-full"},
		{dsn: "postgres://u@db.example/sigbox?sslmode=verify-ca", refuse: "verify-full"},
		{dsn: "host=localhost,db.example user=u dbname=sigbox sslmode=disable", refuse: "no TLS"},
		{dsn: "", refuse: "empty"},
		{dsn: "postgres://db.example/", refuse: "no database"},
	} {
		t.Setenv("PGSSLMODE", "disable") // must not matter
		cfg, err := postgres.NewDSN(test.dsn).Config()
		switch {
		case test.refuse != "":
			if err == nil || !strings.Contains(err.Error(), test.refuse) {
				t.Errorf("%q: %v, want %q", test.dsn, err, test.refuse)
			}
		case err != nil:
			t.Errorf("%q: %v", test.dsn, err)
		case test.secure:
			if c := cfg.ConnConfig.TLSConfig; c == nil || c.InsecureSkipVerify || c.ServerName == "" {
				t.Errorf("%q: TLS %+v", test.dsn, c)
			}
		}
	}
}

func TestDSNKeepsItsSecret(t *testing.T) {
	path := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(path, []byte("postgres://u:hunter2@db.example:x/sigbox\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := postgres.ReadDSN(path); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("%v", err)
	}
	d := postgres.NewDSN("postgres://u:hunter2@db.example/sigbox")
	if s := fmt.Sprintf("%v %s %#v %+v", d, d, d, d); strings.Contains(s, "hunter2") {
		t.Error(s)
	}
}

// A server that may lose what it has acknowledged is refused.
func TestRefusesUnsafeServers(t *testing.T) {
	s := pgtest.New(t)
	dsn := postgres.NewDSN(s.DSN("postgres"))
	for setting, want := range map[string]string{
		"":                         "",
		"fsync=off":                "fsync is off",
		"full_page_writes=off":     "full_page_writes is off",
		"synchronous_commit=off":   "synchronous_commit is off",
		"synchronous_commit=local": "synchronous_commit is local",
		"synchronous_commit=on":    "",
	} {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		var settings []string
		if setting != "" {
			settings = append(settings, setting)
		}
		if err := s.Start(settings...); err != nil {
			t.Fatal(err)
		}
		pool, err := postgres.Open(t.Context(), dsn, postgres.Options{})
		if err == nil {
			pool.Close()
		}
		if want == "" && err != nil || want != "" && (!errors.Is(err, postgres.ErrUnsafe) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", setting, err, want)
		}
	}
}

func TestMigrations(t *testing.T) {
	pool, err := postgres.Open(t.Context(), pgtest.Database(t), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	one := []postgres.Part{{Name: "a", Steps: []string{"CREATE TABLE a1 (x INT); CREATE TABLE a2 (x INT)"}}}
	two := []postgres.Part{
		{Name: "a", Steps: append(one[0].Steps, "ALTER TABLE a1 ADD y INT")},
		{Name: "b", Steps: []string{"CREATE TABLE b1 (x INT)"}},
	}
	broken := []postgres.Part{{Name: "a", Steps: append(two[0].Steps, "ALTER TABLE a1 ADD z INT; SELECT 1/0")}, two[1]}

	for _, step := range []struct {
		name string
		do   func() error
		want error
	}{
		{"nothing there", func() error { return postgres.CheckSchema(t.Context(), pool, one) }, postgres.ErrEmpty},
		{"upgrading nothing", func() error { return postgres.Upgrade(t.Context(), pool, one) }, postgres.ErrEmpty},
		{"creating", func() error { return postgres.Create(t.Context(), pool, one) }, nil},
		{"checking", func() error { return postgres.CheckSchema(t.Context(), pool, one) }, nil},
		{"creating again", func() error { return postgres.Create(t.Context(), pool, one) }, postgres.ErrExists},
		{"older", func() error { return postgres.CheckSchema(t.Context(), pool, two) }, postgres.ErrOlder},
		{"upgrading", func() error { return postgres.Upgrade(t.Context(), pool, two) }, nil},
		{"upgrading again", func() error { return postgres.Upgrade(t.Context(), pool, two) }, nil},
		{"newer", func() error { return postgres.CheckSchema(t.Context(), pool, one) }, postgres.ErrNewer},
		{"downgrading", func() error { return postgres.Upgrade(t.Context(), pool, one) }, postgres.ErrNewer},
	} {
		if err := step.do(); !errors.Is(err, step.want) {
			t.Fatalf("%s: %v, want %v", step.name, err, step.want)
		}
	}
	if err := postgres.Upgrade(t.Context(), pool, broken); err == nil {
		t.Error("a broken step passed")
	}
	if err := postgres.CheckSchema(t.Context(), pool, two); err != nil {
		t.Errorf("after a broken step: %v", err)
	}
	if err := postgres.Drop(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if err := postgres.CheckSchema(t.Context(), pool, one); !errors.Is(err, postgres.ErrEmpty) {
		t.Errorf("after dropping: %v", err)
	}
}
