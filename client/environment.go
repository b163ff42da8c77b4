package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Environment sets other Sigstore clients up for an instance.
type Environment struct {
	Set map[string]string `json:"set"`
	// Unset are variables that would point those clients, and the token with
	// them, somewhere else.
	Unset []string `json:"unset"`
}

// strangers are variables by which clients find another instance or other keys.
var strangers = []string{
	"COSIGN_FULCIO_URL", "COSIGN_REKOR_URL", "COSIGN_OIDC_ISSUER", "COSIGN_OIDC_CLIENT_ID", "COSIGN_OIDC_PROVIDER", "COSIGN_TIMESTAMP_SERVER_URL",
	"COSIGN_SIGNING_CONFIG", "COSIGN_USE_SIGNING_CONFIG", "COSIGN_TRUSTED_ROOT", "COSIGN_NEW_BUNDLE_FORMAT",
	"COSIGN_INSECURE_SKIP_VERIFY", "COSIGN_INSECURE_IGNORE_TLOG", "COSIGN_INSECURE_IGNORE_SCT",
	"TUF_MIRROR", "TUF_ROOT_JSON",
	"SIGSTORE_ROOT_FILE", "SIGSTORE_REKOR_PUBLIC_KEY", "SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "SIGSTORE_TSA_CERTIFICATE_FILE", "SIGSTORE_NO_CACHE",
	"GITSIGN_FULCIO_URL", "GITSIGN_REKOR_URL", "GITSIGN_OIDC_ISSUER", "GITSIGN_OIDC_CLIENT_ID", "GITSIGN_FULCIO_ROOT",
}

// Environment is what a command needs to work with this instance and no other.
// The command is only looked at, to tell the generations of cosign apart: when
// it is none, the cosign on the PATH is taken for the one that it may start.
//
// Version 3 finds everything by TUF and refuses URLs beside it. Version 2 needs
// URLs, without which it sends the token to the public instance, unless its
// arguments tell it to use TUF too. Whatever cannot be told apart gets URLs.
func (p *Profile) Environment(ctx context.Context, command string, args ...string) (*Environment, error) {
	trust, err := p.Trust(ctx)
	if err != nil {
		return nil, err
	}
	endpoints, err := trust.Endpoints()
	if err != nil {
		return nil, err
	}
	tufRoot, err := p.cosignRoot()
	if err != nil {
		return nil, fmt.Errorf("setting up cosign's trust: %w", err)
	}
	rekorKey, err := trust.rekorKey(time.Now())
	if err != nil {
		return nil, err
	}
	set := map[string]string{
		"SIGBOX_PROFILE": p.Name,
		"TUF_ROOT":       tufRoot,
		// rekor-cli believes the key that the log names unless it is given one.
		"REKOR_REKOR_SERVER":            endpoints.Rekor,
		"REKOR_REKOR_SERVER_PUBLIC_KEY": rekorKey,
		// gitsign, and clients in other languages.
		"SIGSTORE_FULCIO_URL":     endpoints.Fulcio,
		"SIGSTORE_REKOR_URL":      endpoints.Rekor,
		"SIGSTORE_OIDC_CLIENT_ID": DefaultClientID,
	}
	if endpoints.OIDC != "" {
		set["SIGSTORE_OIDC_ISSUER"] = endpoints.OIDC
	}
	if path := p.CAFile(); path != "" {
		set["SSL_CERT_FILE"] = path
	}
	if !cosign3(command) && !slices.ContainsFunc(args, usesTUF) {
		set["COSIGN_FULCIO_URL"] = endpoints.Fulcio
		set["COSIGN_REKOR_URL"] = endpoints.Rekor
		// An issuer that does not exist would stop a login; the public one would
		// be asked by default.
		set["COSIGN_OIDC_ISSUER"] = endpoints.OIDC
		if endpoints.OIDC == "" {
			set["COSIGN_OIDC_ISSUER"] = p.URL + "/oidc"
		}
	}
	e := &Environment{Set: set, Unset: []string{}}
	for _, name := range strangers {
		if _, ok := set[name]; !ok {
			e.Unset = append(e.Unset, name)
		}
	}
	return e, nil
}

// Apply changes an environment (os.Environ) accordingly.
func (e *Environment) Apply(environ []string) []string {
	drop := map[string]bool{}
	for _, name := range e.Unset {
		drop[name] = true
	}
	var out []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if _, replaced := e.Set[name]; !replaced && !drop[name] {
			out = append(out, kv)
		}
	}
	for name, value := range e.Set {
		out = append(out, name+"="+value)
	}
	return out
}

// usesTUF are the arguments by which cosign 2.6 signs as version 3 does.
func usesTUF(arg string) bool {
	return arg == "--use-signing-config" || arg == "--use-signing-config=true"
}

// cosign3 tells by the build's own record whether cosign is version 3 or later.
func cosign3(command string) bool {
	for _, name := range []string{command, "cosign"} {
		if name == "" {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			if filepath.Base(name) == "cosign" {
				return false // a script of that name: it may start any version
			}
			continue
		}
		if rest, ok := strings.CutPrefix(info.Path, "github.com/sigstore/cosign/"); ok {
			major, _, _ := strings.Cut(rest, "/")
			return major != "v2" && major != "cmd"
		}
	}
	return false
}

// cosignRoot is a TUF_ROOT as `cosign initialize` would have left it, with the
// pinned root for its anchor. It is kept apart from the profile's own cache,
// which a cosign command could otherwise replace.
func (p *Profile) cosignRoot() (string, error) {
	dir := filepath.Join(p.dir, "cosign")
	mirror := p.URL + "/tuf"
	remote, err := json.Marshal(map[string]string{"mirror": mirror})
	if err != nil {
		return "", err
	}
	// The name that sigstore-go gives a repository's folder.
	repo := strings.NewReplacer("/", "-", ":", "-").Replace(strings.TrimPrefix(strings.TrimPrefix(mirror, "https://"), "http://"))
	repo = strings.ToLower(repo)
	have, err := readFile(filepath.Join(dir, "remote.json"), 4096)
	if err == nil && bytes.Equal(have, remote) {
		if _, err := os.Stat(filepath.Join(dir, repo, "root.json")); err == nil {
			return dir, nil
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	first, err := p.Root()
	if err != nil {
		return "", err
	}
	made, err := os.MkdirTemp(p.dir, ".cosign-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(made) }()
	if err := os.MkdirAll(filepath.Join(made, repo), 0o700); err != nil {
		return "", err
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(made, "remote.json"), remote, 0o600),
		os.WriteFile(filepath.Join(made, repo, "root.json"), first, 0o600),
	); err != nil {
		return "", err
	}
	return dir, swap(made, dir)
}

// rekorKey is the newest key of the log, in PEM form.
func (t *Trust) rekorKey(now time.Time) (string, error) {
	var newest *ecdsa.PublicKey
	var start time.Time
	for _, l := range t.Material.RekorLogs() {
		key, ok := l.PublicKey.(*ecdsa.PublicKey)
		if !ok || (!l.ValidityPeriodEnd.IsZero() && now.After(l.ValidityPeriodEnd)) {
			continue
		}
		if newest == nil || l.ValidityPeriodStart.After(start) {
			newest, start = key, l.ValidityPeriodStart
		}
	}
	if newest == nil {
		return "", cli.Hint(errors.New("no log key in use is trusted here"), "sigbox trust update")
	}
	data, err := cryptoutils.MarshalPublicKeyToPEM(newest)
	return string(data), err
}
