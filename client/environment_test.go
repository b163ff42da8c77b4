package client_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/client/clienttest"
	"github.com/sigstore/sigstore-go/pkg/tuf"
)

// build makes a program that calls itself cosign, of a version, in the record
// that every Go build carries.
func build(t *testing.T, module string) string {
	t.Helper()
	src, out := t.TempDir(), filepath.Join(t.TempDir(), "cosign")
	for path, text := range map[string]string{
		"go.mod":             "module " + module + "\n\ngo 1.26\n",
		"cmd/cosign/main.go": "package main\n\nfunc main() {}\n",
	} {
		path = filepath.Join(src, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", out, "./cmd/cosign")
	cmd.Dir = src
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// TestTokenStaysHome: cosign v2 sends tokens to the public instance unless it is
// given URLs, and v3 refuses URLs beside what TUF tells it.
func TestTokenStaysHome(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	script := filepath.Join(t.TempDir(), "cosign")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	v2, v3 := build(t, "github.com/sigstore/cosign/v2"), build(t, "github.com/sigstore/cosign/v3")
	for _, c := range []struct {
		name, command, path string
		urls                bool
	}{
		{"v3", v3, "", false},
		{"v2", v2, "", true},
		{"v2 told to use TUF", v2 + " --use-signing-config", "", false},
		{"v1", build(t, "github.com/sigstore/cosign"), "", true},
		{"a script", script, "", true},
		{"none at all", "", "", true},
		{"v3 on the path of another command", "make", filepath.Dir(v3), false},
		{"v2 on the path of another command", "make", filepath.Dir(v2), true},
		{"a script on the path", "make", filepath.Dir(script), true},
	} {
		t.Setenv("PATH", c.path)
		command, arg, _ := strings.Cut(c.command, " ")
		e, err := p.Environment(t.Context(), command, arg)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"COSIGN_FULCIO_URL", "COSIGN_REKOR_URL", "COSIGN_OIDC_ISSUER"} {
			value, set := e.Set[name]
			if set != c.urls || (set && !strings.HasPrefix(value, i.URL)) {
				t.Errorf("%s: %s=%q", c.name, name, value)
			}
			if !set && !slices.Contains(e.Unset, name) {
				t.Errorf("%s: an inherited %s would be used", c.name, name)
			}
		}
	}
}

func TestEnvironmentReplacesInherited(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	t.Setenv("PATH", "")
	e, err := p.Environment(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	env := e.Apply([]string{
		"HOME=/home/alice", "TUF_ROOT=/elsewhere", "TUF_MIRROR=https://elsewhere.example", "SIGSTORE_ROOT_FILE=/elsewhere",
		"COSIGN_FULCIO_URL=https://elsewhere.example", "COSIGN_TIMESTAMP_SERVER_URL=https://elsewhere.example",
		"REKOR_REKOR_SERVER=https://elsewhere.example", "SIGSTORE_ID_TOKEN=token",
	})
	text := strings.Join(env, "\n")
	if strings.Contains(text, "elsewhere") {
		t.Errorf("inherited:\n%s", text)
	}
	for _, want := range []string{"HOME=/home/alice", "SIGSTORE_ID_TOKEN=token", "REKOR_REKOR_SERVER=" + i.URL, "COSIGN_FULCIO_URL=" + i.URL} {
		if !slices.Contains(env, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	if !strings.HasPrefix(e.Set["REKOR_REKOR_SERVER_PUBLIC_KEY"], "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("rekor-cli would believe the key that the log names: %q", e.Set["REKOR_REKOR_SERVER_PUBLIC_KEY"])
	}
}

// TestCosignRoot reads TUF_ROOT as cosign does: the mirror from remote.json, the
// root from the repository's folder.
func TestCosignRoot(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	for range 2 {
		e, err := p.Environment(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		dir := e.Set["TUF_ROOT"]
		data, err := os.ReadFile(filepath.Join(dir, "remote.json"))
		if err != nil {
			t.Fatal(err)
		}
		var remote struct{ Mirror string }
		if err := json.Unmarshal(data, &remote); err != nil {
			t.Fatal(err)
		}
		first, err := os.ReadFile(filepath.Join(dir, tuf.URLToPath(remote.Mirror), "root.json"))
		if err != nil {
			t.Fatal(err)
		}
		if string(first) != string(i.Repository().Root()) {
			t.Error("not the pinned root")
		}
		c, err := tuf.New(&tuf.Options{Root: first, CachePath: dir, RepositoryBaseURL: remote.Mirror})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.GetTarget("trusted_root.json"); err != nil {
			t.Error(err)
		}
		// A command that pointed cosign elsewhere has no say in the next one.
		if err := os.WriteFile(filepath.Join(dir, "remote.json"), []byte(`{"mirror":"https://elsewhere.example"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.ReadTrustedRoot(filepath.Join(p.Dir(), "nothing")); err == nil {
		t.Error("a trusted root that is not there was read")
	}
}
