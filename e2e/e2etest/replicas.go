package e2etest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// Replicas makes an instance on a PostgreSQL server of the test's own, with
// `sigboxd init`, and starts so many replicas of it. The first listens at the
// instance's URL; the others, in folders with its keys, certificates and anchors,
// at one of their own.
func Replicas(t testing.TB, n int) ([]*Instance, *pgtest.Server) {
	t.Helper()
	server := pgtest.New(t)
	work := t.TempDir()
	dsn := filepath.Join(work, "dsn")
	if err := os.WriteFile(dsn, []byte(server.Database(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := FreeAddress(t)
	configuration := func(listen string) []byte {
		return fmt.Appendf(nil, "url: http://%s\nlisten: %s\nstorage: {engine: postgres, dsn_file: %s}\n", addr, listen, dsn)
	}
	config := filepath.Join(work, "sigbox.yaml")
	if err := os.WriteFile(config, configuration(addr), 0o600); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(work, "replica0")
	NewProgram(t, Build(t, "sigboxd")).OK(t, "init", "--dir", first, "--config", config)

	var replicas []*Instance
	for i := range n {
		dir, listen := first, addr
		if i > 0 {
			dir, listen = filepath.Join(work, fmt.Sprintf("replica%d", i)), FreeAddress(t)
			for _, shared := range []string{"keys", "certs", "anchor"} {
				if err := os.CopyFS(filepath.Join(dir, shared), os.DirFS(filepath.Join(first, shared))); err != nil {
					t.Fatal(err)
				}
			}
			for _, private := range []string{"keys", "anchor"} {
				restrict(t, filepath.Join(dir, private))
			}
			if err := os.WriteFile(filepath.Join(dir, "sigbox.yaml"), configuration(listen), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		replicas = append(replicas, NewInstance(t, dir, "http://"+listen, "serve", "--dir", dir))
	}
	for i, r := range replicas {
		if i == 0 {
			r.Start(t)
		} else {
			r.Launch(t) // its status names the instance's URL, not its own
		}
	}
	return replicas, server
}

// restrict gives files back the mode that a copy does not keep.
func restrict(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Chmod(filepath.Join(dir, e.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Engine is a storage engine, and how to make and start an instance on it.
type Engine struct {
	Name string
	Make func(t testing.TB) *Instance
}

// Engines are the storage engines. What holds for an instance holds on each.
func Engines() []Engine {
	return []Engine{
		{"sqlite", func(t testing.TB) *Instance {
			t.Helper()
			i := Quickstart(t)
			i.Serve()
			return i
		}},
		{"postgres", func(t testing.TB) *Instance {
			t.Helper()
			replicas, _ := Replicas(t, 1)
			return replicas[0]
		}},
	}
}

// OnEngines runs a test on an instance of each engine.
func OnEngines(t *testing.T, test func(t *testing.T, i *Instance)) {
	for _, e := range Engines() {
		t.Run(e.Name, func(t *testing.T) { test(t, e.Make(t)) })
	}
}

// Origin is the URL that the instance was made for: another than URL where this
// is one replica of several.
func (i *Instance) Origin(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(read(t, filepath.Join(i.Dir, "sigbox.yaml"))) {
		if url, ok := strings.CutPrefix(line, "url: "); ok {
			return strings.TrimSpace(url)
		}
	}
	t.Fatalf("no url in %s/sigbox.yaml", i.Dir)
	return ""
}
