package audit

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sigbox/sigbox/internal/postgres"
)

//go:embed postgres.sql
var postgresSchema string

// Migrations is the record's part of the schema of a PostgreSQL database.
var Migrations = postgres.Part{Name: "audit", Steps: []string{postgresSchema}}

// Postgres is the record in a PostgreSQL database, one for all replicas. It is
// safe for concurrent use.
type Postgres struct {
	pool *pgxpool.Pool

	mu      sync.Mutex
	waiting *gathered
	closed  bool
	writing sync.WaitGroup
	turn    chan struct{} // holds one token: the right to write
}

// gathered are events that are written together.
type gathered struct {
	bodies []string
	size   int
	done   chan struct{}
	err    error
}

// OpenPostgres uses a database whose schema is up to date. The pool stays the
// caller's.
func OpenPostgres(pool *pgxpool.Pool) *Postgres {
	p := &Postgres{pool: pool, turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

// Append implements Func. An error means that the event is not known to be
// durable; the next event is tried all the same.
func (p *Postgres) Append(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encoding audit event: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}

	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	leader := p.waiting == nil
	if leader {
		p.waiting = &gathered{done: make(chan struct{})}
	}
	b := p.waiting
	b.bodies = append(b.bodies, string(body))
	if b.size += len(body); b.size >= maxBatch {
		p.waiting = nil // full: the next event opens another
	}
	p.writing.Add(1)
	p.mu.Unlock()
	defer p.writing.Done()

	if !leader {
		<-b.done
		return b.err
	}
	<-p.turn // whoever writes now lets others join this batch meanwhile
	p.mu.Lock()
	if p.waiting == b {
		p.waiting = nil
	}
	p.mu.Unlock()
	b.err = p.write(b.bodies)
	close(b.done)
	p.turn <- struct{}{}
	return b.err
}

func (p *Postgres) write(bodies []string) error {
	batch := make([]byte, 16)
	rand.Read(batch) // never fails, or the runtime ends the program
	// The batch is everybody's: its leader's context does not end it.
	err := postgres.Retry(context.Background(), func(ctx context.Context) error {
		_, err := p.pool.Exec(ctx, `SELECT append_audit($1, $2)`, batch, bodies)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing audit record: %w", err)
	}
	return nil
}

// Export writes the lines from a number on, the first is 1, and returns the
// number that follows the last.
func (p *Postgres) Export(ctx context.Context, w io.Writer, from int64) (next int64, err error) {
	rows, err := p.pool.Query(ctx, `SELECT seq, line FROM audit_line WHERE seq >= $1 ORDER BY seq`, from)
	if err != nil {
		return from, fmt.Errorf("reading audit record: %w", err)
	}
	next = from
	var seq int64
	var line string
	if _, err = pgx.ForEachRow(rows, []any{&seq, &line}, func() error {
		if seq != next {
			return fmt.Errorf("line %d follows line %d", seq, next-1)
		}
		next++
		_, err := io.WriteString(w, line)
		return err
	}); err != nil {
		return next, fmt.Errorf("reading audit record: %w", err)
	}
	return next, nil
}

// Err is nil: a server that was away is used again when it is back.
func (p *Postgres) Err() error { return nil }

// Close waits for events under way and leaves the pool open.
func (p *Postgres) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.writing.Wait()
	return nil
}
