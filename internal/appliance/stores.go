package appliance

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/tuf"
)

// auditRecord is the record of what the instance vouched for, in a file or in
// the database.
type auditRecord interface {
	Append(ctx context.Context, e audit.Event) error
	Check(ctx context.Context) error
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

// knowInstance completes what locate found.
func (l layout) knowInstance(ctx context.Context, instance state.Instance) (state.Instance, error) {
	if l.cfg.Storage.Engine != config.Postgres {
		return instance, nil
	}
	db, instance, err := openDatabase(ctx, l.cfg)
	if err != nil {
		return instance, err
	}
	return instance, db.Close()
}

// ErrNotOnDatabase means that something is for instances that keep their state
// in files.
var ErrNotOnDatabase = errors.New("storage.engine is postgres")

// onFiles refuses what cannot be done with PostgreSQL.
func (l layout) onFiles() error {
	if l.cfg.Storage.Engine == config.Postgres {
		return fmt.Errorf("%w: the database is backed up and restored with the means of its server", ErrNotOnDatabase)
	}
	return nil
}

// openAudit opens the record. One that cannot be continued takes no events:
// nothing is signed that cannot be put on record, and reading needs none.
func (l layout) openAudit(db *database, instance string, logger *slog.Logger) (auditRecord, error) {
	if db != nil {
		return audit.OpenPostgres(db.pool), nil
	}
	record, err := audit.Open(l.auditOptions(instance))
	if errors.Is(err, audit.ErrDamaged) {
		logger.Error("the audit record cannot be continued: serving what there is, signing nothing", "error", err)
		return audit.Unusable(err), nil
	}
	if err != nil {
		return nil, err
	}
	return record, nil
}

// auditTrail reads the record.
type auditTrail struct {
	end  func(ctx context.Context) (audit.Head, error)
	read func(ctx context.Context, yield func(*audit.Record) error, broken func(*audit.ChainError) error) (audit.Summary, error)
}

func (l layout) auditTrail(db *database, instance string) auditTrail {
	if db != nil {
		p := audit.OpenPostgres(db.pool)
		return auditTrail{p.End, func(ctx context.Context, yield func(*audit.Record) error, broken func(*audit.ChainError) error) (audit.Summary, error) {
			return p.Read(ctx, instance, yield, broken)
		}}
	}
	return auditTrail{
		func(context.Context) (audit.Head, error) { return audit.End(l.auditOptions(instance)) },
		func(ctx context.Context, yield func(*audit.Record) error, broken func(*audit.ChainError) error) (audit.Summary, error) {
			return audit.Read(ctx, l.audit(), instance, yield, broken)
		},
	}
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
	// make makes everything empty, and the logs, whose numbers it notes.
	make(ctx context.Context, made *state.Instance) error
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
	return []string{f.tuf(), f.data(""), f.rekor(), f.audit()}
}

func (f newFiles) make(ctx context.Context, made *state.Instance) error {
	if err := f.makeLogs(ctx, made, f.logger); err != nil {
		return err
	}
	if err := audit.Create(f.auditOptions(made.ID)); err != nil {
		return err
	}
	if err := rekor.Create(ctx, f.rekor()); err != nil {
		return fmt.Errorf("making rekor's stores: %w", err)
	}
	if err := issuer.CreateCI(ctx, f.issuer()); err != nil {
		return err
	}
	return issuer.CreatePeople(ctx, f.issuer())
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

func (d newDatabase) make(ctx context.Context, made *state.Instance) error {
	if err := d.makeLogs(ctx, made, d.logger); err != nil {
		return err
	}
	return audit.CreatePostgres(ctx, d.db.pool, made.ID)
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
