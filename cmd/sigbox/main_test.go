package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/client/clienttest"
	"github.com/sigbox/sigbox/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sigbox": main,
	})
}

// TestScripts runs each command as a person would, with one instance and one
// registry for each script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
		},
		Setup: func(env *testscript.Env) error {
			tb := env.T().(testing.TB)
			i := clienttest.New(tb)
			reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
			env.Defer(reg.Close)
			host := strings.TrimPrefix(reg.URL, "http://")
			img, err := random.Image(64, 1)
			if err != nil {
				return err
			}
			tag, err := name.NewTag(host + "/app:v1")
			if err != nil {
				return err
			}
			if err := remote.Write(tag, img); err != nil {
				return err
			}
			digest, err := img.Digest()
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.WorkDir, "root.json"), i.Repository().Root(), 0o644); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(env.WorkDir, "token"), []byte(i.Token("alice@example.com")), 0o600); err != nil {
				return err
			}
			for k, v := range map[string]string{
				"URL":       i.URL,
				"ISSUER":    i.Issuer(),
				"CHECKSUM":  i.Repository().RootChecksum(),
				"TOKEN":     i.Token("alice@example.com"),
				"REGISTRY":  host,
				"IMAGE":     tag.Context().Digest(digest.String()).String(),
				"DIGEST":    digest.String(),
				"HOME":      filepath.Join(env.WorkDir, "home"),
				"ALICE":     "alice@example.com",
				"NO_PROXY":  "*",
				"ZERO_HASH": strings.Repeat("0", 64),
			} {
				env.Setenv(k, v)
			}
			return nil
		},
	})
}

// exits runs a command that must end with an exit code: exits CODE COMMAND…
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	want, err := strconv.Atoi(args[0])
	if err != nil {
		ts.Fatalf("%v", err)
	}
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// TestEveryCommandHelps: a summary, an explanation by example, and no command
// without either.
func TestEveryCommandHelps(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: no summary or no example", c.CommandPath())
		}
		var out bytes.Buffer
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		if code := run(context.Background(), args, nil, &out, io.Discard); code != cli.ExitOK || !strings.Contains(out.String(), "Examples:") {
			t.Errorf("%s --help: exit code %d:\n%s", c.CommandPath(), code, out.String())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk((&app{}).root())
}

// TestImportsNoServer: verify-only hosts and key holders carry this program
// alone.
func TestImportsNoServer(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "github.com/sigbox/sigbox/cmd/sigbox").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d packages listed", len(deps))
	}
	for _, path := range deps {
		for _, bad := range []string{
			"sqlite", "github.com/google/trillian", "github.com/sigstore/fulcio/pkg/server", "github.com/sigstore/fulcio/pkg/ca",
			"github.com/sigstore/rekor/pkg/api", "restapi", "github.com/sigstore/timestamp-authority/v2/pkg/api",
			"dexidp", "sigbox/services", "sigbox/internal/appliance",
		} {
			if strings.Contains(path, bad) {
				t.Errorf("%s is imported", path)
			}
		}
		if path == "database/sql" {
			t.Errorf("%s is imported", path)
		}
	}
}
