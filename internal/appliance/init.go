package appliance

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/tuf"
)

// Lifetimes of the certificates. The roots outlive what they certify by years,
// so that a visit late is no outage; the online ones are short enough that a
// stolen key is worth little after the next rotation.
const (
	year                 = 365 * 24 * time.Hour
	rootLifetime         = 10 * year
	intermediateLifetime = 5 * year
)

// Init makes a new instance in dir from a configuration file's contents. It
// refuses a folder that holds anything, and leaves none of its own behind when
// it fails.
func Init(ctx context.Context, dir string, configuration []byte, now time.Time, logger *slog.Logger) (made state.Instance, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return made, err
	}
	cfg, err := config.Parse(configuration, dir)
	if err != nil {
		return made, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if err := state.Claim(dir); err != nil {
		return made, err
	}
	lock, err := state.Acquire(dir)
	if err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeContents(dir))
		}
		err = errors.Join(err, lock.Release())
	}()

	l := layout{dir, cfg}
	id := make([]byte, 16)
	rand.Read(id) // never fails, or the runtime ends the program
	made.ID = hex.EncodeToString(id)
	stores, err := l.newStores(ctx, logger)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, stores.done(err)) }()
	for _, d := range append([]string{l.offline(""), l.key(""), l.cert(""), l.run()}, stores.dirs()...) {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return made, err
		}
	}
	if err := durable.WriteNew(filepath.Join(dir, config.FileName), configuration, 0o600); err != nil {
		return made, err
	}
	pass, err := l.readOrMakePassphrase()
	if err != nil {
		return made, err
	}
	if err := l.claimAnchors(); err != nil {
		return made, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeContents(l.anchors()))
		}
	}()
	if err := stores.make(ctx, &made); err != nil {
		return made, err
	}
	repo, signers, err := l.makeTrust(pass, now)
	if err != nil {
		return made, err
	}
	if err := stores.saveTrust(ctx, repo); err != nil {
		return made, fmt.Errorf("writing the tuf repository: %w", err)
	}

	made.Schema, made.Created = state.Schema, now.UTC().Truncate(time.Second)
	made.URL, made.RootSHA256 = cfg.URL, repo.RootChecksum()
	if err := errors.Join(syncTree(dir), syncTree(l.anchors())); err != nil {
		return made, err
	}
	return made, stores.complete(ctx, made, signers)
}

// ErrConfig marks what is wrong with the configuration.
var ErrConfig = errors.New("configuration")

// removeContents undoes an init that failed. The folder was empty before.
func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// syncTree makes every name below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return durable.SyncDir(path)
	})
}

func (l layout) readOrMakePassphrase() (keys.Passphrase, error) {
	p, err := keys.ReadPassphrase(l.passphrase())
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	p = keys.GeneratePassphrase()
	return p, p.WriteFile(l.passphrase())
}

// claimAnchors takes the anchors' folder, which may be outside of the instance's
// own.
func (l layout) claimAnchors() error {
	entries, err := os.ReadDir(l.anchors())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making anchors: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s, where the anchors would be: %w", l.anchors(), state.ErrExists)
	}
	return nil
}

// logsConfig is about the logs' storage.
func (l layout) logsConfig(instance state.Instance, logger *slog.Logger) (cfg trillian.Config, err error) {
	cfg = trillian.Config{
		Dir: l.logs(), AnchorDir: l.anchors(), Instance: instance.ID, SocketDir: l.run(), SequenceOnWrite: *l.cfg.Log.SequenceOnWrite,
		SequenceInterval: l.cfg.Log.SequenceInterval, ScrubRate: l.cfg.Log.ScrubBytesPerSecond, ScrubInterval: l.cfg.Log.ScrubInterval,
		Logger: logger,
	}
	if l.cfg.Storage.Engine == config.Postgres {
		cfg.Dir = ""
		if cfg.Postgres, err = postgres.ReadDSN(l.cfg.Path(l.cfg.Storage.DSNFile)); err != nil {
			return cfg, fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	return cfg, nil
}

// makeLogs makes both logs, in storage that is empty.
func (l layout) makeLogs(ctx context.Context, made *state.Instance, logger *slog.Logger) (err error) {
	cfg, err := l.logsConfig(*made, logger)
	if err != nil {
		return err
	}
	if err := trillian.Create(ctx, cfg); err != nil {
		return fmt.Errorf("making log storage: %w", err)
	}
	logs, err := trillian.New(ctx, cfg)
	if err != nil {
		return fmt.Errorf("opening log storage: %w", err)
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	if made.CTTree, err = logs.CreateLog(ctx, trillian.LogOptions{Name: "ctlog", MaxRootDuration: l.cfg.Log.CTMaxRootAge}); err != nil {
		return fmt.Errorf("making the ct log: %w", err)
	}
	if made.RekorTree, err = logs.CreateLog(ctx, trillian.LogOptions{Name: "rekor"}); err != nil {
		return fmt.Errorf("making rekor's log: %w", err)
	}
	return nil
}

// makeTrust makes every key and certificate and the repository that vouches
// for them. It returns the online keys too.
func (l layout) makeTrust(pass keys.Passphrase, now time.Time) (*tuf.Repository, map[string]crypto.Signer, error) {
	made := map[string]crypto.Signer{}
	for _, path := range []string{
		l.offline(keyFulcioRoot), l.offline(keyTSARoot), l.offline(keyTUFRoot), l.offline(keyTUFTargets),
		l.key(keyFulcio), l.key(keyCT), l.key(keyRekor), l.key(keyTSA), l.key(keySnapshot), l.key(keyTimestamp), l.key(keyCI),
	} {
		generate := keys.Generate
		if path == l.key(keyCI) {
			generate = keys.GenerateRSA
		}
		key, err := generate()
		if err != nil {
			return nil, nil, fmt.Errorf("making key %s: %w", filepath.Base(path), err)
		}
		if err := keys.Write(path, key, pass); err != nil {
			return nil, nil, err
		}
		made[filepath.Base(path)] = key
	}

	name := func(cn string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: []string{l.cfg.Operator}}
	}
	chain := func(root, leaf, rootName, leafName string, lifetime time.Duration,
		issue func(pki.Issuer, crypto.PublicKey, pki.Template) (*x509.Certificate, error),
	) ([]*x509.Certificate, error) {
		top, err := pki.NewRoot(made[root], pki.Template{Subject: name(rootName), Now: now, Lifetime: rootLifetime})
		if err != nil {
			return nil, fmt.Errorf("making certificate %q: %w", rootName, err)
		}
		cert, err := issue(pki.Issuer{Certificate: top, Signer: made[root]}, made[leaf].Public(), pki.Template{Subject: name(leafName), Now: now, Lifetime: lifetime})
		if err != nil {
			return nil, fmt.Errorf("making certificate %q: %w", leafName, err)
		}
		return []*x509.Certificate{cert, top}, nil
	}
	fulcio, err := chain(keyFulcioRoot, keyFulcio, "sigbox root", "sigbox intermediate", intermediateLifetime, pki.NewIntermediate)
	if err != nil {
		return nil, nil, err
	}
	tsa, err := chain(keyTSARoot, keyTSA, "sigbox timestamp root", "sigbox timestamp authority", intermediateLifetime, pki.NewTimestamping)
	if err != nil {
		return nil, nil, err
	}
	for file, certs := range map[string][]*x509.Certificate{chainFulcio: fulcio, chainTSA: tsa} {
		if err := durable.WriteNew(l.cert(file), pki.Encode(certs...), 0o644); err != nil {
			return nil, nil, err
		}
	}

	origin := l.cfg.URL
	u, err := url.Parse(origin)
	if err != nil {
		return nil, nil, err
	}
	// Signatures are believed from the start of the certificates that make them.
	start := fulcio[1].NotBefore
	material := tuf.TrustMaterial{
		Fulcio:      []tuf.Authority{{Chain: fulcio, URL: origin, Start: start}},
		CTLogs:      []tuf.Log{{PublicKey: made[keyCT].Public(), URL: origin + ctPath, Start: start}},
		Rekor:       []tuf.Log{{PublicKey: made[keyRekor].Public(), URL: origin, Start: start}},
		TSAs:        []tuf.Authority{{Chain: tsa, URL: origin + "/api/v1/timestamp", Start: start}},
		OIDCIssuers: []string{origin + peoplePath},
		Operator:    u.Hostname(),
	}
	files, err := material.Targets(now)
	if err != nil {
		return nil, nil, fmt.Errorf("making tuf targets: %w", err)
	}
	role := func(key string) tuf.Role {
		return tuf.Role{Signers: []crypto.Signer{made[key]}, Threshold: 1}
	}
	repo, err := tuf.Create(tuf.Config{
		Root: role(keyTUFRoot), Targets: role(keyTUFTargets), Snapshot: role(keySnapshot), Timestamp: role(keyTimestamp),
		Now: now, Files: files,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("making the tuf repository: %w", err)
	}
	online := map[string]crypto.Signer{}
	for _, name := range onlineKeys {
		online[name] = made[name]
	}
	return repo, online, nil
}
