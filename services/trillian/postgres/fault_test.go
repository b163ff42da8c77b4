package postgres

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/trillian"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/postgres/pgtest"
)

// wire is between a client and the server and cuts connections.
type wire struct {
	listener net.Listener
	server   string
	// cut, if set, is what happens to the next commit of a transaction that
	// wrote: connections die before it reaches the server, or right after.
	cut   atomic.Pointer[string]
	cuts  atomic.Int64
	mu    sync.Mutex
	conns map[net.Conn]bool
}

const (
	beforeCommit = "before the server has it"
	afterCommit  = "before the client hears of it"
)

func newWire(t *testing.T, server string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, server: server, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); w.cutAll() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.serve(c)
		}
	}()
	return w
}

func (w *wire) dsn(t *testing.T, database string) postgres.DSN {
	host, port, err := net.SplitHostPort(w.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return postgres.NewDSN(fmt.Sprintf("host=%s port=%s user=sigbox dbname=%s sslmode=disable", host, port, database))
}

func (w *wire) cutAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) serve(client net.Conn) {
	server, err := net.Dial("tcp", w.server)
	if err != nil {
		client.Close()
		return
	}
	w.mu.Lock()
	w.conns[client], w.conns[server] = true, true
	w.mu.Unlock()
	defer func() {
		client.Close()
		server.Close()
		w.mu.Lock()
		delete(w.conns, client)
		delete(w.conns, server)
		w.mu.Unlock()
	}()
	answered := make(chan struct{}) // closed when an answer finds nobody
	go func() {
		defer close(answered)
		io.Copy(client, server)
		client.Close()
	}()
	buf := make([]byte, 1<<20)
	wrote := false
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		// pgx sends "commit" as a message of its own.
		wrote = wrote || bytes.Contains(bytes.ToLower(buf[:n]), []byte("insert into"))
		if cut := w.cut.Load(); cut != nil && wrote && bytes.HasPrefix(buf[:n], []byte("Q")) && bytes.Contains(buf[:n], []byte("commit")) {
			w.cut.Store(nil)
			w.cuts.Add(1)
			if *cut == beforeCommit {
				return
			}
			client.Close() // nobody hears the answer
			server.Write(buf[:n])
			<-answered
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// The connection dies in the commit. The client is told what became of it in
// truth: the entry is there, once, and is its own.
func TestCommitOfUnknownOutcome(t *testing.T) {
	server := pgtest.Shared(t)
	for _, when := range []string{beforeCommit, afterCommit} {
		for _, n := range []int{1, 2 * fewLeaves} {
			t.Run(fmt.Sprintf("%s, %d leaves", when, n), func(t *testing.T) {
				direct := postgres.NewDSN(server.Database(t))
				create(t, direct)
				cfg, err := direct.Config()
				if err != nil {
					t.Fatal(err)
				}
				w := newWire(t, server.TCP())
				s := open(t, w.dsn(t, cfg.ConnConfig.Database), onWrite)
				tree := newTree(t, s)
				queue(t, s, tree, "before")
				w.cut.Store(&when)
				var values []string
				for i := range n {
					values = append(values, fmt.Sprint("value ", i))
				}
				for i, q := range queue(t, s, tree, values...) {
					if code(q) != codes.OK {
						t.Errorf("%s: %v", values[i], q)
					}
				}
				if w.cuts.Load() != 1 {
					t.Error("nothing was cut")
				}
				if got := audit(t, direct, tree); len(got) != n+1 {
					t.Errorf("%v", got)
				}
				if q := queue(t, s, tree, values[0]); code(q[0]) != codes.AlreadyExists {
					t.Errorf("sent again: %v", q)
				}
			})
		}
	}
}

// load writes from several goroutines through several storages, and keeps what
// was acknowledged.
type load struct {
	mu    sync.Mutex
	acked []string
	errs  []error
}

func (l *load) run(ctx context.Context, storages []*Storage, tree *trillian.Tree, workers int) *sync.WaitGroup {
	var wg sync.WaitGroup
	for w := range workers {
		s := storages[w%len(storages)]
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				value := fmt.Sprintf("%p %d/%d", l, w, i)
				_, err := s.QueueLeaves(context.Background(), tree, []*trillian.LogLeaf{newLeaf(value)}, time.Now())
				l.mu.Lock()
				if err != nil {
					l.errs = append(l.errs, err)
				} else {
					l.acked = append(l.acked, value)
				}
				l.mu.Unlock()
			}
		})
	}
	return &wg
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// The server crashes, stops, and has its sessions cut while two replicas write.
// Both go on by themselves, and nothing that was acknowledged is missing.
func TestServerGoesAway(t *testing.T) {
	server := pgtest.New(t)
	dsn := postgres.NewDSN(server.Database(t))
	create(t, dsn)
	replicas := []*Storage{open(t, dsn, onWrite), open(t, dsn, onWrite)}
	tree := newTree(t, replicas[0])
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	l := &load{}
	wg := l.run(ctx, replicas, tree, 8)
	more := func(what string) {
		t.Helper()
		was := l.count()
		for deadline := time.Now().Add(30 * time.Second); l.count() < was+40; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("nothing is written %s", what)
			}
		}
	}
	more("at first")
	for name, fault := range map[string]func() error{
		"crash":   func() error { return server.Kill() },
		"stop":    func() error { return server.Stop() },
		"nothing": func() error { return server.Stop() },
	} {
		if err := fault(); err != nil {
			t.Fatal(err)
		}
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		more("after a " + name)
	}
	for range 20 {
		server.Exec(t, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sigboxd%' AND random() < 0.5`)
		time.Sleep(20 * time.Millisecond)
	}
	more("after sessions were cut")
	stop()
	wg.Wait()
	values := audit(t, dsn, tree)
	for _, v := range l.acked {
		if _, ok := values[v]; !ok {
			t.Errorf("%s was acknowledged and is not there", v)
		}
	}
	for _, err := range l.errs {
		if status.Code(err) != codes.Unavailable {
			t.Errorf("refused with %v", err)
		}
	}
	t.Logf("%d acknowledged, %d refused", len(l.acked), len(l.errs))
}

// While the server is away callers are refused, in a bounded time, and reading
// never shows a tree of size zero in place of an error.
func TestServerIsAway(t *testing.T) {
	server := pgtest.New(t)
	dsn := postgres.NewDSN(server.Database(t))
	create(t, dsn)
	s := open(t, dsn, onWrite)
	tree := newTree(t, s)
	queue(t, s, tree, "a")
	snap, err := s.SnapshotForTree(t.Context(), tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := snap.GetLeavesByRange(t.Context(), 0, 1); status.Code(err) != codes.Unavailable {
		t.Errorf("reading on: %v", err)
	}
	if err := snap.Commit(t.Context()); err == nil {
		t.Error("committed")
	}
	snap.Close()
	if snap, err := s.SnapshotForTree(t.Context(), tree); status.Code(err) != codes.Unavailable {
		t.Errorf("snapshot %v, %v", snap, err)
	}
	if root, err := s.Head(tree.TreeId); status.Code(err) != codes.Unavailable {
		t.Errorf("head %v, %v", root, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	if _, err := s.QueueLeaves(ctx, tree, []*trillian.LogLeaf{newLeaf("b")}, time.Now()); status.Code(err) != codes.Unavailable || ctx.Err() != nil {
		t.Errorf("writing: %v", err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	queue(t, s, tree, "c")
	if values := audit(t, dsn, tree); len(values) != 2 {
		t.Errorf("%v", values)
	}
}
