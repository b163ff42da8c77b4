package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/tuf"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
)

const (
	maxMetadata = 5_000_000
	maxTarget   = 8 << 20
)

// Trust is what an instance vouches for.
type Trust struct {
	// Material verifies signatures.
	Material root.TrustedMaterial
	// TrustedRoot is trusted_root.json, of which Material was made.
	TrustedRoot []byte
	// Signing says where to sign; nil when only a trusted root was given.
	Signing *root.SigningConfig
	// Expiries of the TUF metadata, the next one first; empty without TUF.
	Expiries []tuf.Expiry
	// Cached is set when the instance was not asked.
	Cached bool
}

// ReadTrustedRoot takes trust from a trusted_root.json and nothing else: no
// network, no home folder.
func ReadTrustedRoot(path string) (*Trust, error) {
	data, err := readFile(path, maxTarget)
	if err != nil {
		return nil, fmt.Errorf("reading the trusted root: %w", err)
	}
	material, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return nil, cli.Usage("trusted root %s: %w", path, err)
	}
	return &Trust{Material: material, TrustedRoot: data, Cached: true}, nil
}

// Trust is what the profile's instance vouched for when it was last asked. The
// instance is asked again only when that has expired or is not there.
func (p *Profile) Trust(ctx context.Context) (*Trust, error) {
	t, err := p.cached(time.Now())
	if err == nil {
		return t, nil
	}
	fresh, refreshErr := p.Refresh(ctx)
	if refreshErr != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the trust kept here no longer holds: %s; %w", err.Error(), refreshErr)
	}
	return fresh, refreshErr
}

func (p *Profile) cacheDir() string { return filepath.Join(p.dir, "tuf") }

// startRoot is where updates start: the newest root that was reached from the
// pinned one, so that older ones are not walked again.
func (p *Profile) startRoot() ([]byte, error) {
	first, err := p.Root()
	if err != nil {
		return nil, err
	}
	latest, err := readFile(filepath.Join(p.cacheDir(), metadata.ROOT+".json"), maxRootFile)
	if errors.Is(err, fs.ErrNotExist) {
		return first, nil
	}
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.Name, err)
	}
	return latest, nil
}

// cached verifies what is kept here, without touching network or disk.
func (p *Profile) cached(now time.Time) (*Trust, error) {
	start, err := p.startRoot()
	if err != nil {
		return nil, err
	}
	set, err := trustedmetadata.New(start)
	if err != nil {
		return nil, fmt.Errorf("TUF root: %w", err)
	}
	set.RefTime = now.UTC()
	for _, step := range []struct {
		role   string
		update func([]byte) error
	}{
		{metadata.TIMESTAMP, func(b []byte) error { _, err := set.UpdateTimestamp(b); return err }},
		{metadata.SNAPSHOT, func(b []byte) error { _, err := set.UpdateSnapshot(b, false); return err }},
		{metadata.TARGETS, func(b []byte) error { _, err := set.UpdateTargets(b); return err }},
	} {
		data, err := readFile(filepath.Join(p.cacheDir(), step.role+".json"), maxMetadata)
		if err != nil {
			return nil, err
		}
		if err := step.update(data); err != nil {
			return nil, fmt.Errorf("TUF %s: %w", step.role, err)
		}
	}
	t, err := newTrust(*set, func(info *metadata.TargetFiles) ([]byte, error) {
		data, err := readFile(filepath.Join(p.cacheDir(), "targets", url.PathEscape(info.Path)), maxTarget)
		if err != nil {
			return nil, err
		}
		return data, info.VerifyLengthHashes(data)
	})
	if err != nil {
		return nil, err
	}
	t.Cached = true
	return t, nil
}

// Refresh asks the instance what it vouches for now and keeps it.
func (p *Profile) Refresh(ctx context.Context) (*Trust, error) {
	t, err := p.refresh(ctx)
	if err != nil {
		return nil, cli.Hint(fmt.Errorf("fetching the trust of %s: %w", p.URL, err), "is it reachable? try: curl %s/readyz", p.URL)
	}
	return t, nil
}

func (p *Profile) refresh(ctx context.Context) (*Trust, error) {
	start, err := p.startRoot()
	if err != nil {
		return nil, err
	}
	transport, err := p.transport(ctx)
	if err != nil {
		return nil, err
	}
	cfg, err := config.New(p.URL+"/tuf", start)
	if err != nil {
		return nil, err
	}
	cfg.LocalMetadataDir = p.cacheDir()
	cfg.LocalTargetsDir = filepath.Join(p.cacheDir(), "targets")
	cfg.Fetcher = fetcher{transport}
	up, err := updater.New(cfg)
	if err != nil {
		return nil, err
	}
	if err := up.Refresh(); err != nil {
		return nil, err
	}
	return newTrust(up.GetTrustedMetadataSet(), func(info *metadata.TargetFiles) ([]byte, error) {
		_, data, err := up.FindCachedTarget(info, "")
		if err == nil && len(data) > 0 {
			return data, nil
		}
		_, data, err = up.DownloadTarget(info, "", "")
		return data, err
	})
}

// newTrust reads the two targets that count.
func newTrust(set trustedmetadata.TrustedMetadata, target func(*metadata.TargetFiles) ([]byte, error)) (*Trust, error) {
	targets, ok := set.Targets[metadata.TARGETS]
	if !ok || set.Root == nil || set.Snapshot == nil || set.Timestamp == nil {
		return nil, errors.New("the TUF repository is incomplete")
	}
	read := func(name string) ([]byte, error) {
		info, ok := targets.Signed.Targets[name]
		if !ok || info == nil {
			return nil, fmt.Errorf("the TUF repository has no target %s", name)
		}
		if info.Length > maxTarget {
			return nil, fmt.Errorf("target %s is larger than %d bytes", name, maxTarget)
		}
		data, err := target(info)
		if err != nil {
			return nil, fmt.Errorf("target %s: %w", name, err)
		}
		return data, nil
	}
	t := &Trust{}
	var err error
	if t.TrustedRoot, err = read(tuf.TrustedRootName); err != nil {
		return nil, err
	}
	if t.Material, err = root.NewTrustedRootFromJSON(t.TrustedRoot); err != nil {
		return nil, fmt.Errorf("target %s: %w", tuf.TrustedRootName, err)
	}
	signing, err := read(tuf.SigningConfigName)
	if err != nil {
		return nil, err
	}
	if t.Signing, err = root.NewSigningConfigFromJSON(signing); err != nil {
		return nil, fmt.Errorf("target %s: %w", tuf.SigningConfigName, err)
	}
	t.Expiries = []tuf.Expiry{
		{Role: metadata.ROOT, Version: set.Root.Signed.Version, Expires: set.Root.Signed.Expires},
		{Role: metadata.TARGETS, Version: targets.Signed.Version, Expires: targets.Signed.Expires},
		{Role: metadata.SNAPSHOT, Version: set.Snapshot.Signed.Version, Expires: set.Snapshot.Signed.Expires},
		{Role: metadata.TIMESTAMP, Version: set.Timestamp.Signed.Version, Expires: set.Timestamp.Signed.Expires},
	}
	slices.SortStableFunc(t.Expiries, func(a, b tuf.Expiry) int { return a.Expires.Compare(b.Expires) })
	return t, nil
}

// service picks the newest endpoint in use that speaks version 1 of its API.
func (t *Trust) service(what string, list []root.Service) (string, error) {
	if t.Signing == nil {
		return "", errors.New("a trusted root alone does not say where to sign")
	}
	s, err := root.SelectService(list, []uint32{1}, time.Now())
	if err != nil {
		return "", fmt.Errorf("signing configuration: no %s in use", what)
	}
	return s.URL, nil
}

// Endpoints are the URLs of an instance's services.
type Endpoints struct {
	Fulcio string `json:"fulcio"`
	Rekor  string `json:"rekor"`
	TSA    string `json:"tsa"`
	OIDC   string `json:"oidc_issuer,omitempty"` // where people sign in; may be empty
}

// Endpoints picks the services to sign with.
func (t *Trust) Endpoints() (Endpoints, error) {
	if t.Signing == nil {
		return Endpoints{}, errors.New("a trusted root alone does not say where to sign")
	}
	var e Endpoints
	var errs [3]error
	e.Fulcio, errs[0] = t.service("certificate authority", t.Signing.FulcioCertificateAuthorityURLs())
	e.Rekor, errs[1] = t.service("transparency log", t.Signing.RekorLogURLs())
	e.TSA, errs[2] = t.service("timestamp authority", t.Signing.TimestampAuthorityURLs())
	if list := t.Signing.OIDCProviderURLs(); len(list) > 0 {
		e.OIDC, _ = t.service("issuer", list)
	}
	return e, errors.Join(errs[:]...)
}

// fetcher downloads TUF files with the limits of the updater.
type fetcher struct{ *transport }

func (f fetcher) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	data, err := f.get(url, limit)
	var status *StatusError
	if errors.As(err, &status) {
		// The kind of error by which the updater knows the end of the roots.
		err = &metadata.ErrDownloadHTTP{StatusCode: status.Status, URL: url}
	}
	return data, err
}

// readFile is os.ReadFile with a limit.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}
