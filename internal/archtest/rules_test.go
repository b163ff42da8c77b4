// Package archtest holds the architecture: who may import whom, and what the
// programs may link. The rules are those of the linter's configuration,
// .golangci.yml, so that there is one list and go test is enough to hold it.
package archtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sigbox/sigbox/e2e/stock"
)

// A rule is one of depguard's, in its list mode "lax": what is not denied is
// allowed, and of a denied and an allowed prefix the longer one counts.
type rule struct {
	name  string
	Files []string `yaml:"files"`
	Mode  string   `yaml:"list-mode"`
	Deny  []struct {
		Package string `yaml:"pkg"`
		Because string `yaml:"desc"`
	} `yaml:"deny"`
	Allow []string `yaml:"allow"`
}

func loadRules(t *testing.T, root string) []rule {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, ".golangci.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Linters struct {
			Settings struct {
				Depguard struct {
					Rules map[string]rule `yaml:"rules"`
				} `yaml:"depguard"`
			} `yaml:"settings"`
		} `yaml:"linters"`
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	var rules []rule
	for name, r := range config.Linters.Settings.Depguard.Rules {
		if r.Mode != "lax" || len(r.Files) == 0 || len(r.Deny) == 0 {
			t.Errorf("rule %s: this test knows the mode lax, with files and a deny list", name)
		}
		r.name = name
		rules = append(rules, r)
	}
	if len(rules) == 0 {
		t.Fatal("no rules in .golangci.yml")
	}
	return rules
}

// covers tells whether the rule is about a file, by its path from the root.
func (r rule) covers(path string) bool {
	covered := false
	for _, pattern := range r.Files {
		if not, ok := strings.CutPrefix(pattern, "!"); ok {
			if glob(not, path) {
				return false
			}
			continue
		}
		covered = covered || glob(pattern, path)
	}
	return covered
}

func glob(pattern, path string) bool {
	switch pattern {
	case "$all":
		return true
	case "$test":
		return strings.HasSuffix(path, "_test.go")
	}
	expr := regexp.QuoteMeta(pattern)
	expr = strings.ReplaceAll(expr, `\*\*`, `.*`)
	expr = strings.ReplaceAll(expr, `\*`, `[^/]*`)
	return regexp.MustCompile("^" + expr + "$").MatchString("/" + path)
}

// verdict is why an import is denied, or empty.
func (r rule) verdict(imported string) string {
	because, longest := "", -1
	for _, d := range r.Deny {
		if n := prefix(d.Package, imported); n > longest {
			because, longest = d.Because, n
		}
	}
	for _, a := range r.Allow {
		if prefix(a, imported) > longest {
			return ""
		}
	}
	return because
}

// prefix is the length of the listed package if it stands for the imported one,
// else -1. A trailing $ makes the listed one stand for itself alone. Depguard
// would let .../cmd/sigbox stand for .../cmd/sigboxd too; the rules avoid that.
func prefix(listed, imported string) int {
	if exact, ok := strings.CutSuffix(listed, "$"); ok {
		if exact == imported {
			return len(exact) + 1
		}
		return -1
	}
	if imported == listed || strings.HasPrefix(imported, strings.TrimSuffix(listed, "/")+"/") {
		if strings.HasSuffix(listed, "/") && imported == strings.TrimSuffix(listed, "/") {
			return -1
		}
		return len(listed)
	}
	return -1
}

func TestImports(t *testing.T) {
	root := stock.ModuleRoot(t)
	rules := loadRules(t, root)
	used := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); path != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "tools") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if !r.covers(filepath.ToSlash(rel)) {
				continue
			}
			used[r.name] = true
			for _, i := range file.Imports {
				imported, err := strconv.Unquote(i.Path.Value)
				if err != nil {
					return err
				}
				if because := r.verdict(imported); because != "" {
					t.Errorf("%s imports %s: %s (rule %s)", rel, imported, because, r.name)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if !used[r.name] {
			t.Errorf("rule %s covers no file: %q", r.name, r.Files)
		}
	}
}

// TestRules shows that a rule can say no: one that matches nothing would pass
// every tree.
func TestRules(t *testing.T) {
	rules := loadRules(t, stock.ModuleRoot(t))
	for _, c := range []struct {
		file, imported string
		denied         bool
	}{
		{"services/rekor/rekor.go", "github.com/sigbox/sigbox/services/tsa", true},
		{"services/rekor/rekor.go", "github.com/sigbox/sigbox/services/rekor/store", false},
		{"services/rekor/rekor.go", "github.com/sigbox/sigbox/internal/appliance", true},
		{"services/rekor/rekor.go", "github.com/sigbox/sigbox/internal/durable", false},
		{"cmd/sigbox/main.go", "github.com/sigbox/sigbox/services/issuer", true},
		{"cmd/sigbox/main.go", "modernc.org/sqlite", true},
		{"cmd/sigboxd/main.go", "github.com/sigbox/sigbox/services/issuer", false},
		{"client/sign.go", "github.com/sigstore/rekor/pkg/api", true},
		{"client/sign.go", "github.com/sigstore/sigstore-go/pkg/verify", false},
		{"internal/appliance/appliance.go", "github.com/spf13/viper", true},
		{"internal/appliance/appliance.go", "github.com/sigstore/fulcio/pkg/ca", true},
		{"services/tsa/tsa.go", "github.com/sigstore/timestamp-authority/v2/pkg/api", false},
		{"services/tsa/tsa.go", "github.com/sigstore/timestamp-authority/v2/pkg/server", true},
		{"services/ctlog/ctlog.go", "github.com/google/trillian", false},
		{"services/ctlog/ctlog.go", "github.com/google/trillian/storage", true},
		{"internal/config/config.go", "log", true},
		{"internal/config/config.go", "log/slog", false},
		{"e2e/interop/x_test.go", "github.com/sigbox/sigbox/client", true},
		{"services/rekor/x_test.go", "github.com/google/trillian/client", false},
	} {
		denied := false
		for _, r := range rules {
			denied = denied || r.covers(c.file) && r.verdict(c.imported) != ""
		}
		if denied != c.denied {
			t.Errorf("%s importing %s: denied is %t, want %t", c.file, c.imported, denied, c.denied)
		}
	}
	if !glob("**/services/**", "services/tsa/tsa.go") || glob("**/client/**", "e2e/clients/x_test.go") {
		t.Error("globs do not match as depguard's do")
	}
}

// listDeps is everything a package links, by import path.
func listDeps(t *testing.T, root, pkg string) []string {
	t.Helper()
	out := goList(t, root, "-deps", "-f", "{{.ImportPath}}", pkg)
	return strings.Fields(out)
}

// TestSigboxLinksNoServer: verify-only hosts and key holders carry the client
// alone, so what it links is as much a promise as what it imports.
func TestSigboxLinksNoServer(t *testing.T) {
	root := stock.ModuleRoot(t)
	stock.Track(t, root)
	for _, pkg := range []string{"./cmd/sigbox", "./client", "./tuf"} {
		for _, dep := range listDeps(t, root, pkg) {
			for _, no := range []string{
				"github.com/sigbox/sigbox/services", "github.com/sigbox/sigbox/internal/appliance",
				"github.com/google/trillian", "github.com/google/certificate-transparency-go/trillian",
				"github.com/sigstore/fulcio/pkg/server", "github.com/sigstore/fulcio/pkg/ca",
				"github.com/sigstore/rekor/pkg/api", "github.com/sigstore/rekor/pkg/generated/restapi",
				"github.com/sigstore/timestamp-authority/v2/pkg/api", "github.com/sigstore/timestamp-authority/v2/pkg/server",
				"github.com/dexidp/dex", "modernc.org/sqlite",
			} {
				// Types that talk of databases without one (database/sql/driver) are
				// everywhere; the thing itself is not.
				if prefix(no, dep) >= 0 || dep == "database/sql" {
					t.Errorf("%s links %s", pkg, dep)
				}
			}
		}
	}
}

// publicInstance is a host of the public good instance. The bare domain names
// types, such as predicates, and nobody dials it.
var publicInstance = regexp.MustCompile(`[a-z0-9-]+\.sigstore\.dev`)

// TestNoPublicInstance: no default of any program names a public Sigstore.
func TestNoPublicInstance(t *testing.T) {
	root := stock.ModuleRoot(t)
	for _, dir := range []string{"cmd", "client", "internal", "services", "tuf", "scripts"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for n, line := range strings.Split(string(data), "\n") {
				if code, _, _ := strings.Cut(line, "// "); publicInstance.MatchString(code) {
					t.Errorf("%s:%d names a public instance: %s", path, n+1, strings.TrimSpace(line))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestCGOFree: everything builds without a C compiler.
func TestCGOFree(t *testing.T) {
	root := stock.ModuleRoot(t)
	stock.Track(t, root)
	for line := range strings.Lines(goList(t, root, "-deps", "-f", `{{if .CgoFiles}}{{.ImportPath}}{{end}}`, "./cmd/...")) {
		if pkg := strings.TrimSpace(line); pkg != "" {
			t.Errorf("%s needs cgo even when it is off", pkg)
		}
	}
}

func goList(t *testing.T, root string, args ...string) string {
	t.Helper()
	out, err := runGo(root, append([]string{"list"}, args...)...)
	if err != nil {
		t.Fatal(fmt.Errorf("go list: %w", err))
	}
	return out
}
