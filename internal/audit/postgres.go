package audit

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"sync"

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
	body, err := e.encode()
	if err != nil {
		return err
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

// CreatePostgres begins the record of an instance.
func CreatePostgres(ctx context.Context, pool *pgxpool.Pool, instance string) error {
	body, err := Event{Type: Segment, Service: "audit", Fields: map[string]any{"instance": instance, "segment": 1}}.encode()
	if err != nil {
		return err
	}
	p := OpenPostgres(pool)
	var n int
	if err := pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT 1 FROM audit_line LIMIT 1) one`).Scan(&n); err != nil || n > 0 {
		return errors.Join(errors.New("making audit record: there is one"), err)
	}
	return p.write([]string{string(body)})
}

// Read is the function of this name for the record in the database, which is one
// file.
func (p *Postgres) Read(ctx context.Context, instance string, yield func(*Record) error, broken func(*ChainError) error) (sum Summary, err error) {
	rows, err := p.pool.Query(ctx, `SELECT line FROM audit_line ORDER BY seq`)
	if err != nil {
		return sum, fmt.Errorf("reading audit record: %w", err)
	}
	r := reader{chain: chain{instance: instance, joined: true}, yield: yield, broken: broken}
	r.chain.head.Segment, r.sum.Segments = 1, 1
	var line string
	if _, err = pgx.ForEachRow(rows, []any{&line}, func() error { return r.line(ctx, []byte(line)) }); err != nil {
		return r.sum, err
	}
	if r.sum.Records == 0 {
		return r.sum, ErrMissing
	}
	return r.sum, nil
}

// End is the end of the chain.
func (p *Postgres) End(ctx context.Context) (head Head, err error) {
	var seq int64
	var sum []byte
	err = p.pool.QueryRow(ctx, `SELECT seq, sum FROM audit_line ORDER BY seq DESC LIMIT 1`).Scan(&seq, &sum)
	if errors.Is(err, pgx.ErrNoRows) {
		return head, ErrMissing
	}
	if err != nil {
		return head, fmt.Errorf("reading audit record: %w", err)
	}
	head.Seq, head.Segment = uint64(seq), 1
	copy(head.Sum[:], sum)
	return head, nil
}

// Check is nil: a server that was away is used again when it is back.
func (p *Postgres) Check(context.Context) error { return nil }

// Close waits for events under way and leaves the pool open.
func (p *Postgres) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.writing.Wait()
	return nil
}
