package appliance

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
)

//go:embed database.sql
var databaseSchema string

// schemaParts is the whole schema of a database, in the order it is made.
var schemaParts = []postgres.Part{
	trillian.Migrations, rekor.Migrations, issuer.Migrations, audit.Migrations,
	{Name: "appliance", Steps: []string{databaseSchema}},
}

const (
	// databaseConns bounds the connections of one replica but for its logs'.
	databaseConns = 12
	// watchInterval is how often the database is asked whether it is still the
	// instance's.
	watchInterval = time.Second
	askTimeout    = 3 * time.Second
)

// errOther means that the database is not the one this replica was started on.
var errOther = errors.New("the database holds another instance, or an older state of this one put back: restart this replica when that is meant")

// database is what the replicas of an instance share. It is a service: while it
// runs it watches whether the server answers, and whether what it has is still
// the instance.
type database struct {
	dsn   postgres.DSN
	pool  *pgxpool.Pool
	epoch int64
	id    string

	ready chan struct{}
	last  atomic.Pointer[error] // of the last look
}

// connect opens the pool and looks at nothing.
func connect(ctx context.Context, cfg *config.Config) (*database, error) {
	dsn, err := postgres.ReadDSN(cfg.Path(cfg.Storage.DSNFile))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	pool, err := postgres.Open(ctx, dsn, postgres.Options{Name: "sigboxd", MaxConns: databaseConns})
	if err != nil {
		return nil, err
	}
	d := &database{dsn: dsn, pool: pool, ready: make(chan struct{})}
	close(d.ready)
	return d, nil
}

// openDatabase connects to a database that holds a complete instance in this
// program's schema.
func openDatabase(ctx context.Context, cfg *config.Config) (_ *database, made state.Instance, err error) {
	d, err := connect(ctx, cfg)
	if err != nil {
		return nil, made, err
	}
	defer func() {
		if err != nil {
			d.pool.Close()
		}
	}()
	if err := postgres.CheckSchema(ctx, d.pool, schemaParts); err != nil {
		return nil, made, err
	}
	var content []byte
	err = d.pool.QueryRow(ctx, `SELECT id, epoch, content FROM instance`).Scan(&d.id, &d.epoch, &content)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, made, fmt.Errorf("the database: %w", ErrHalfMade)
	}
	if err != nil {
		return nil, made, fmt.Errorf("reading the instance: %w", err)
	}
	if err := json.Unmarshal(content, &made); err != nil {
		return nil, made, fmt.Errorf("reading the instance: %w", err)
	}
	if made.Schema > state.Schema {
		return nil, made, fmt.Errorf("the database: schema %d, this one knows %d: %w", made.Schema, state.Schema, state.ErrNewer)
	}
	if made.ID == "" || made.ID != d.id || made.CTTree == 0 || made.RekorTree == 0 {
		return nil, made, errors.New("the instance in the database is damaged: id or tree ids are missing")
	}
	made.Epoch = int(d.epoch) // the row's is the one that counts
	return d, made, nil
}

// ErrHalfMade means that an init on the database did not finish.
var ErrHalfMade = errors.New("it holds a half-made instance: init did not finish")

// complete writes the instance, after all else.
func (d *database) complete(ctx context.Context, made state.Instance, signers map[string]crypto.Signer) error {
	content, err := json.Marshal(made)
	if err != nil {
		return err
	}
	sums, err := fingerprints(signers)
	if err != nil {
		return err
	}
	_, err = d.pool.Exec(ctx, `INSERT INTO instance (id, epoch, content, keys) VALUES ($1, $2, $3, $4)`, made.ID, made.Epoch, content, sums)
	if err != nil {
		return fmt.Errorf("writing the instance: %w", err)
	}
	return nil
}

// fingerprints are the hashes of public keys, in PKIX form and hexadecimal.
func fingerprints(signers map[string]crypto.Signer) (map[string]string, error) {
	sums := map[string]string{}
	for name, s := range signers {
		der, err := x509.MarshalPKIXPublicKey(s.Public())
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", name, err)
		}
		sum := sha256.Sum256(der)
		sums[name] = hex.EncodeToString(sum[:])
	}
	return sums, nil
}

// checkKeys refuses keys that are not the instance's: a replica with others
// would sign the shared logs in nobody's name.
func (d *database) checkKeys(ctx context.Context, signers map[string]crypto.Signer) error {
	have, err := fingerprints(signers)
	if err != nil {
		return err
	}
	var want map[string]string
	if err := d.pool.QueryRow(ctx, `SELECT keys FROM instance`).Scan(&want); err != nil {
		return fmt.Errorf("reading the instance's keys: %w", err)
	}
	for name, sum := range have {
		if want[name] != sum {
			return fmt.Errorf("key %s is not the one of the instance in the database: its replicas share their keys", name)
		}
	}
	return nil
}

// Ready implements service.
func (d *database) Ready() <-chan struct{} { return d.ready }

// Run implements service. It fails only when the database is another.
func (d *database) Run(ctx context.Context) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := d.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errOther) {
			return err
		}
		d.last.Store(&err)
	}
}

// look asks the database who it is.
func (d *database) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var id string
	var epoch int64
	err := d.pool.QueryRow(ctx, `SELECT id, epoch FROM instance`).Scan(&id, &epoch)
	switch {
	case errors.Is(err, pgx.ErrNoRows), err == nil && (id != d.id || epoch != d.epoch):
		return errOther
	case err != nil:
		return fmt.Errorf("the database does not answer: %w", err)
	}
	return nil
}

// problem is what the last look found.
func (d *database) problem(context.Context) error {
	if err := d.last.Load(); err != nil {
		return *err
	}
	return nil
}

// DSN is how to connect; the zero value with SQLite.
func (d *database) DSN() postgres.DSN {
	if d == nil {
		return postgres.DSN{}
	}
	return d.dsn
}

// Pool is nil with SQLite.
func (d *database) Pool() *pgxpool.Pool {
	if d == nil {
		return nil
	}
	return d.pool
}

// Close disconnects.
func (d *database) Close() error {
	d.pool.Close()
	return nil
}

// honest answers 503 in place of another error while the database is away:
// upstream's servers do not tell the one from the other, and clients try again
// after the one and not after the other.
func (d *database) honest(h http.Handler) http.Handler {
	if d == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(&honestWriter{ResponseWriter: w, away: func() bool {
			if d.problem(r.Context()) != nil {
				return true
			}
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Second)
			defer cancel()
			return d.pool.Ping(ctx) != nil
		}}, r)
	})
}

type honestWriter struct {
	http.ResponseWriter
	away func() bool
	said bool
}

func (w *honestWriter) WriteHeader(code int) {
	if !w.said && code >= 500 && code != http.StatusServiceUnavailable && w.away() {
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "5")
	}
	w.said = w.said || code >= 200
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (w *honestWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Upgrade brings the schema of the database of the instance in dir to this
// program's version. Replicas must not run meanwhile.
func Upgrade(ctx context.Context, dir string) (err error) {
	l, _, err := locate(dir)
	if err != nil {
		return err
	}
	if l.cfg.Storage.Engine != config.Postgres {
		return fmt.Errorf("%w: storage.engine is %s: its files are upgraded as they are opened", ErrRequest, l.cfg.Storage.Engine)
	}
	d, err := connect(ctx, l.cfg)
	if err != nil {
		return err
	}
	return errors.Join(postgres.Upgrade(ctx, d.pool, schemaParts), d.Close())
}
