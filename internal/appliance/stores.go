package appliance

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/tuf"
)

// auditRecord is the record of what the instance vouched for, in a file or in
// the database.
type auditRecord interface {
	Append(ctx context.Context, e audit.Event) error
	Err() error
	Close() error
}

// openInstance reads what init decided. With PostgreSQL it connects to the
// database, which the caller closes; with SQLite that is nil.
func (l layout) openInstance(ctx context.Context) (*database, state.Instance, error) {
	if l.cfg.Storage.Engine == config.Postgres {
		return openDatabase(ctx, l.cfg)
	}
	made, err := state.Load(l.dir)
	return nil, made, err
}

func (l layout) openAudit(db *database) (auditRecord, error) {
	if db != nil {
		return audit.OpenPostgres(db.pool), nil
	}
	record, err := audit.Open(l.audit())
	if err != nil {
		return nil, err
	}
	return record, nil
}

func (l layout) repositories(db *database) repositories {
	if db != nil {
		return tufTable{db}
	}
	return tufFolder(l.tuf())
}

// stores is an instance's state while init makes it.
type stores interface {
	// dirs are the folders it wants.
	dirs() []string
	// make makes everything empty, and the logs.
	make(ctx context.Context) (state.Instance, error)
	saveTrust(ctx context.Context, r *tuf.Repository) error
	// complete makes it an instance. It is the last thing that init does.
	complete(ctx context.Context, made state.Instance, signers map[string]crypto.Signer) error
	// done lets go of it, and after a failure removes what was made outside of
	// the instance's folder.
	done(failure error) error
}

// newStores refuses to make anything where something is.
func (l layout) newStores(ctx context.Context, logger *slog.Logger) (stores, error) {
	if l.cfg.Storage.Engine != config.Postgres {
		return newFiles{l, logger}, nil
	}
	db, err := connect(ctx, l.cfg)
	if err != nil {
		return nil, err
	}
	if err := postgres.Create(ctx, db.pool, schemaParts); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return newDatabase{l, db, logger}, nil
}

type newFiles struct {
	layout
	logger *slog.Logger
}

func (f newFiles) dirs() []string {
	return []string{f.tuf(), f.data(""), f.rekor(), filepath.Dir(f.audit())}
}

func (f newFiles) make(ctx context.Context) (made state.Instance, err error) {
	if err := audit.Create(f.audit()); err != nil {
		return made, fmt.Errorf("making audit record: %w", err)
	}
	cfg := trillian.Config{Dir: f.logs(), SocketDir: f.run(), Logger: f.logger}
	if err := trillian.Create(ctx, cfg); err != nil {
		return made, fmt.Errorf("making log storage: %w", err)
	}
	if made, err = f.makeLogs(ctx, cfg); err != nil {
		return made, err
	}
	if err := rekor.Create(ctx, f.rekor()); err != nil {
		return made, fmt.Errorf("making rekor's stores: %w", err)
	}
	if err := issuer.CreateCI(ctx, f.issuer()); err != nil {
		return made, err
	}
	return made, issuer.CreatePeople(ctx, f.issuer())
}

func (f newFiles) saveTrust(_ context.Context, r *tuf.Repository) error { return tuf.Save(f.tuf(), r) }

func (f newFiles) complete(_ context.Context, made state.Instance, _ map[string]crypto.Signer) error {
	return made.Save(f.dir)
}

// done leaves the folder to whoever made it.
func (newFiles) done(error) error { return nil }

type newDatabase struct {
	layout
	db     *database
	logger *slog.Logger
}

func (newDatabase) dirs() []string { return nil }

func (d newDatabase) make(ctx context.Context) (state.Instance, error) {
	return d.makeLogs(ctx, trillian.Config{Postgres: d.db.dsn, SocketDir: d.run(), Logger: d.logger})
}

func (d newDatabase) saveTrust(ctx context.Context, r *tuf.Repository) error {
	return tufTable{d.db}.create(ctx, r)
}

func (d newDatabase) complete(ctx context.Context, made state.Instance, signers map[string]crypto.Signer) error {
	return d.db.complete(ctx, made, signers)
}

func (d newDatabase) done(failure error) error {
	var err error
	if failure != nil {
		err = postgres.Drop(context.Background(), d.db.pool)
	}
	return errors.Join(err, d.db.Close())
}

// makeLogs makes both logs in storage that is empty.
func (l layout) makeLogs(ctx context.Context, cfg trillian.Config) (made state.Instance, err error) {
	logs, err := trillian.New(ctx, cfg)
	if err != nil {
		return made, fmt.Errorf("opening log storage: %w", err)
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	if made.CTTree, err = logs.CreateLog(ctx, trillian.LogOptions{Name: "ctlog", MaxRootDuration: l.cfg.Log.CTMaxRootAge}); err != nil {
		return made, fmt.Errorf("making the ct log: %w", err)
	}
	if made.RekorTree, err = logs.CreateLog(ctx, trillian.LogOptions{Name: "rekor"}); err != nil {
		return made, fmt.Errorf("making rekor's log: %w", err)
	}
	return made, nil
}
