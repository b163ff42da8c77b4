// Package folder shows what sigboxd does where its folder or its configuration
// is not as it should be: it says what is wrong and what to do, signs nothing,
// changes nothing, and goes on when the cause is gone.
package folder

import (
	"crypto/sha256"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

// made is an instance that init made and nobody serves.
func made(t *testing.T) *e2etest.Instance {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "instance")
	addr := e2etest.FreeAddress(t)
	i := e2etest.NewInstance(t, dir, "http://"+addr, "serve", "--dir", dir)
	i.Sigboxd().OK(t, "init", "--dir", dir, "--url", i.URL, "--listen", addr)
	return i
}

// serveFails demands that serve ends by itself with an exit code, and words on
// standard error.
func serveFails(t *testing.T, i *e2etest.Instance, code int, words ...string) {
	t.Helper()
	r := i.Sigboxd().ExitsWith(t, code, "sigboxd: error: ", "serve", "--dir", i.Dir)
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("%q is not in what it says: %v", w, r)
		}
	}
	if r.Stdout != "" {
		t.Errorf("an error is on standard output: %v", r)
	}
}

func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(data))), info.Mode()); err != nil {
		t.Fatal(err)
	}
}

func appended(text string) func(string) string {
	return func(s string) string { return s + "\n" + text + "\n" }
}

func TestServeRefuses(t *testing.T) {
	config := func(i *e2etest.Instance) string { return filepath.Join(i.Dir, "sigbox.yaml") }
	remove := func(path ...string) func(*testing.T, *e2etest.Instance) {
		return func(t *testing.T, i *e2etest.Instance) {
			if err := os.RemoveAll(filepath.Join(append([]string{i.Dir}, path...)...)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, i *e2etest.Instance)
		code  int
		words []string
	}{
		{"missing", remove(), 2, []string{"sigboxd init"}},
		{"half-made", remove("instance.json"), 2, []string{"half-made", "hint: "}},
		{"of a newer schema", func(t *testing.T, i *e2etest.Instance) {
			edit(t, filepath.Join(i.Dir, "instance.json"), func(s string) string {
				var doc map[string]any
				if err := json.Unmarshal([]byte(s), &doc); err != nil {
					t.Fatal(err)
				}
				doc["schema"] = 99
				out, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				return string(out)
			})
		}, 2, []string{"newer", "99", "hint: "}},
		{"with damaged state", func(t *testing.T, i *e2etest.Instance) {
			edit(t, filepath.Join(i.Dir, "instance.json"), func(s string) string { return s[:len(s)/2] })
		}, 1, []string{"instance.json"}},
		{"with an unknown key", func(t *testing.T, i *e2etest.Instance) {
			edit(t, config(i), appended("colour: blue"))
		}, 2, []string{"colour", "sigbox.yaml"}},
		{"with an unknown key further in", func(t *testing.T, i *e2etest.Instance) {
			edit(t, config(i), appended("rekor:\n  max_body_byte: 5"))
		}, 2, []string{"max_body_byte", "sigbox.yaml"}},
		{"with configuration that is not YAML", func(t *testing.T, i *e2etest.Instance) {
			edit(t, config(i), appended("a: [b"))
		}, 2, []string{"sigbox.yaml"}},
		{"without configuration", remove("sigbox.yaml"), 2, []string{"sigbox.yaml"}},
		{"with another URL", func(t *testing.T, i *e2etest.Instance) {
			edit(t, config(i), func(s string) string { return strings.ReplaceAll(s, i.URL, "http://127.0.0.1:1") })
		}, 2, []string{"url"}},
		{"on a public address without TLS", func(t *testing.T, i *e2etest.Instance) {
			edit(t, config(i), func(s string) string {
				return strings.ReplaceAll(s, strings.TrimPrefix(i.URL, "http://"), "0.0.0.0:8080")
			})
		}, 2, []string{"tls"}},
		{"without a key", remove("keys", "rekor.pem"), 1, []string{"rekor.pem"}},
		{"without the passphrase", remove("keys", "passphrase"), 1, []string{"passphrase"}},
		{"with another passphrase", func(t *testing.T, i *e2etest.Instance) {
			edit(t, filepath.Join(i.Dir, "keys", "passphrase"), func(string) string { return "wrong" })
		}, 1, []string{"passphrase"}},
		{"without its logs", remove("data", "logs"), 1, []string{"logs"}},
		{"without its index", remove("data", "rekor"), 1, []string{"rekor"}},
		{"without its spent tokens", remove("data", "issuer"), 1, []string{"issuer"}},
		{"without its trust", remove("tuf"), 1, []string{"tuf"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := made(t)
			c.spoil(t, i)
			before := snapshot(t, i.Dir)
			serveFails(t, i, c.code, c.words...)
			for path, sum := range snapshot(t, i.Dir) {
				if before[path] != sum {
					t.Errorf("a start that failed made or changed %s", path)
				}
				delete(before, path)
			}
			for path := range before {
				t.Errorf("a start that failed removed %s", path)
			}
		})
	}
}

// snapshot is the hashes, by name, of all that must not be made or changed:
// everything but locks, what lies in run/, and the databases' own write-ahead
// files.
func snapshot(t *testing.T, dir string) map[string][sha256.Size]byte {
	t.Helper()
	sums := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if name == "run" {
				return filepath.SkipDir
			}
			return nil
		}
		if name == "lock" || strings.HasSuffix(name, ".lock") || strings.HasSuffix(name, "-wal") || strings.HasSuffix(name, "-shm") {
			return nil
		}
		data, err := os.ReadFile(path)
		sums[path] = sha256.Sum256(data)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return sums
}

func TestLockedByAnother(t *testing.T) {
	i := made(t)
	i.Launch(t)
	serveFails(t, i, 1, "another sigboxd", "hint: ")
	i.Healthy(t)
}

func TestAddressInUse(t *testing.T) {
	one, other := made(t), made(t)
	one.Launch(t)
	edit(t, filepath.Join(other.Dir, "sigbox.yaml"), func(s string) string { return strings.ReplaceAll(s, other.URL, one.URL) })
	edit(t, filepath.Join(other.Dir, "sigbox.yaml"), func(s string) string {
		return strings.ReplaceAll(s, strings.TrimPrefix(other.URL, "http://"), strings.TrimPrefix(one.URL, "http://"))
	})
	edit(t, filepath.Join(other.Dir, "instance.json"), func(s string) string { return strings.ReplaceAll(s, other.URL, one.URL) })
	serveFails(t, other, 1, strings.TrimPrefix(one.URL, "http://"), "hint: ")
	one.Healthy(t)
}

func TestInitNeverOverwrites(t *testing.T) {
	i := made(t)
	before := snapshot(t, i.Dir)
	i.Sigboxd().ExitsWith(t, 2, "never overwrites", "init", "--dir", i.Dir, "--url", i.URL)
	if !maps.Equal(snapshot(t, i.Dir), before) {
		t.Error("init changed an instance that is there")
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "letter.txt"), []byte("dear"), 0o600); err != nil {
		t.Fatal(err)
	}
	i.Sigboxd().ExitsWith(t, 2, "never overwrites", "init", "--dir", foreign, "--url", i.URL)
}

func TestUsage(t *testing.T) {
	i := made(t)
	d := i.Sigboxd()
	d.ExitsWith(t, 2, "sigboxd: hint: ", "serve", "--colour")
	d.ExitsWith(t, 2, "sigboxd: error: ", "serve")
	d.ExitsWith(t, 2, "sigboxd: error: ", "dance")
	d.ExitsWith(t, 2, "sigboxd: error: ", "init", "--dir", filepath.Join(t.TempDir(), "x"), "--url", "ftp://example.com")
	d.ExitsWith(t, 2, "sigboxd: error: ", "init", "--dir", filepath.Join(t.TempDir(), "x"), "--url", "http://sigbox.example.com", "--listen", "0.0.0.0:80")
	d.ExitsWith(t, 3, "not running", "status", "--dir", i.Dir)
	if r := d.Run(t, "token", "--dir", i.Dir, "--subject", "a b c"); r.Code == 0 || r.Stdout != "" {
		t.Errorf("a token for a subject that no certificate can hold: %v", r)
	}
}
