package durability

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

// persist signs at a replica with some workers until the context ends, whatever
// fails meanwhile.
func (l *ledger) persist(ctx context.Context, i *e2etest.Instance, workers int, signed, refused *atomic.Int64) *sync.WaitGroup {
	client := clientOf(i, workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				var digest [sha256.Size]byte
				rand.Read(digest[:])
				s, err := client.Sign(context.Background(), digest)
				if err != nil {
					refused.Add(1)
					select {
					case <-time.After(10 * time.Millisecond):
					case <-ctx.Done():
					}
					continue
				}
				l.note(s)
				signed.Add(1)
			}
		})
	}
	return &wg
}

// Two replicas sign side by side; one is killed and comes back; the database is
// stopped, crashes and comes back. Everything that was acknowledged by either is
// there, provably, at both, and nobody was shown two histories.
func TestReplicas(t *testing.T) {
	replicas, server := e2etest.Replicas(t, 2)
	l := newLedger(t, replicas[0])
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var signed [2]atomic.Int64
	var refused atomic.Int64
	var load [2]*sync.WaitGroup
	for n, r := range replicas {
		load[n] = l.persist(ctx, r, 8, &signed[n], &refused)
	}
	more := func(what string, who ...int) {
		t.Helper()
		var was [2]int64
		for _, n := range who {
			was[n] = signed[n].Load()
		}
		e2etest.Eventually(t, time.Minute, "signatures "+what, func() bool {
			for _, n := range who {
				if signed[n].Load() < was[n]+20 {
					return false
				}
			}
			return true
		})
		t.Logf("%s: %d and %d signed, %d refused", what, signed[0].Load(), signed[1].Load(), refused.Load())
	}
	more("at first", 0, 1)
	replicas[1].Kill(t)
	more("while the other replica is gone", 0)
	replicas[1].Launch(t)
	more("of both again", 0, 1)
	for what, fault := range map[string]func() error{"was stopped": server.Stop, "crashed": server.Kill} {
		if err := fault(); err != nil {
			t.Fatal(err)
		}
		e2etest.Eventually(t, time.Minute, "the replicas to say that they are not ready", func() bool {
			return readyz(t, replicas[0]) == http.StatusServiceUnavailable && readyz(t, replicas[1]) == http.StatusServiceUnavailable
		})
		// What cannot be kept is refused in a way that clients understand.
		e2etest.Eventually(t, time.Minute, "a write to be answered 503", func() bool {
			resp, err := http.Post(replicas[0].URL+"/api/v1/log/entries", "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != ""
		})
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		e2etest.Eventually(t, time.Minute, "the replicas to be ready", func() bool {
			return readyz(t, replicas[0]) == http.StatusOK && readyz(t, replicas[1]) == http.StatusOK
		})
		t.Logf("ready %v after the database was back", time.Since(began).Round(time.Millisecond))
		more("after the database "+what, 0, 1)
	}
	stop()
	for _, wg := range load {
		wg.Wait()
	}
	l.holds(t)
	at := *replicas[1]
	l.instance = &at
	l.holds(t)
}

func readyz(t *testing.T, i *e2etest.Instance) int {
	t.Helper()
	resp, err := http.Get(i.URL + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode
}

// A token that one replica has taken is not taken by the other.
func TestTokenIsSpentEverywhere(t *testing.T) {
	replicas, _ := e2etest.Replicas(t, 2)
	token := replicas[0].Token(t, subject)
	for n, r := range replicas {
		client := clientOf(r, 1)
		client.Token = func(context.Context) (string, error) { return token, nil }
		if _, err := client.Sign(context.Background(), [32]byte{byte(n)}); (err == nil) != (n == 0) {
			t.Errorf("replica %d: %v", n, err)
		}
	}
}

// A replica serves what another has renewed at once: a client that saw the one
// would take the other for a rollback.
func TestReplicasServeOneRepository(t *testing.T) {
	replicas, _ := e2etest.Replicas(t, 2)
	var first []byte
	for n, r := range replicas {
		data := getRaw(t, r.URL+"/tuf/timestamp.json")
		if n == 0 {
			first = data
		} else if string(data) != string(first) {
			t.Errorf("replica %d serves another timestamp", n)
		}
	}
}

// What must not serve does not: a second init, a replica with other keys.
func TestReplicaRefusals(t *testing.T) {
	replicas, server := e2etest.Replicas(t, 1)
	r := replicas[0]
	sigboxd := r.Sigboxd()
	sigboxd.ExitsWith(t, 2, "holds an instance already", "init", "--dir", filepath.Join(t.TempDir(), "another"), "--config", filepath.Join(r.Dir, "sigbox.yaml"))

	// The database is put back from a backup: the epoch says so, and who knew the
	// one before stops.
	server.Exec(t, "test1", "UPDATE sigbox.instance SET epoch = epoch + 1")
	if code := r.Wait(t, time.Minute); code == 0 || !strings.Contains(r.Log(t), "another instance, or an older state") {
		t.Errorf("exit code %d", code)
	}
	r.Launch(t) // meant: it is restarted
	r.Stop(t)

	// Of another release.
	server.Exec(t, "test1", "UPDATE sigbox.schema_version SET version = 99 WHERE part = 'rekor'")
	sigboxd.ExitsWith(t, 2, "newer sigboxd", "serve", "--dir", r.Dir)
	server.Exec(t, "test1", "DELETE FROM sigbox.schema_version WHERE part = 'rekor'")
	sigboxd.ExitsWith(t, 2, "sigboxd upgrade --dir", "serve", "--dir", r.Dir)
	server.Exec(t, "test1", "INSERT INTO sigbox.schema_version (part, version) VALUES ('rekor', 1)")
	sigboxd.OK(t, "upgrade", "--dir", r.Dir)

	// With the keys of another instance of the same make.
	other, _ := e2etest.Replicas(t, 1)
	for _, shared := range []string{"keys", "certs"} {
		if err := os.RemoveAll(filepath.Join(r.Dir, shared)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(other[0].Dir, shared), filepath.Join(r.Dir, shared)); err != nil {
			t.Fatal(err)
		}
	}
	sigboxd.ExitsWith(t, 1, "is not the one of the instance in the database", "serve", "--dir", r.Dir)
}
