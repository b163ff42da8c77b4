package durability

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

func escape(raw []byte) string { return url.QueryEscape(base64.StdEncoding.EncodeToString(raw)) }

// TestKillDuringBurst kills the process ten times while eight clients sign.
// After each restart everything that was acknowledged must be there, provably,
// and both logs must extend every tree head that anybody was shown.
func TestKillDuringBurst(t *testing.T) { e2etest.OnEngines(t, testKillDuringBurst) }

func testKillDuringBurst(t *testing.T, i *e2etest.Instance) {
	l := newLedger(t, i)
	for round := range 10 {
		enough := l.count() + 10 + rand.IntN(25)
		wait := l.burst(context.Background(), 8)
		e2etest.Eventually(t, time.Minute, "signatures to be acknowledged", func() bool { return l.count() >= enough })
		i.Kill(t)
		wait()
		l.anchored(t)
		took := i.Launch(t)
		t.Logf("round %d: %d signatures acknowledged so far, ready %v after the restart", round, l.count(), took.Round(time.Millisecond))
		l.holds(t)
	}
	t.Run("rekor-cli", func(t *testing.T) { l.rekorCLI(t) })
}

// anchored looks at what a killed process left: every entry is computed anew,
// and nothing was shown to anybody that the anchors do not have.
func (l *ledger) anchored(t *testing.T) {
	t.Helper()
	r := l.instance.Sigboxd().OK(t, "verify-logs", "--dir", l.instance.Dir, "--json")
	var reports []struct {
		Name   string
		Size   uint64
		Anchor struct {
			Size uint64
			Root string
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &reports); err != nil {
		t.Fatal(err, r)
	}
	shown := map[string]*witness{"rekor": l.rekor, "ctlog": l.ct}
	for _, log := range reports {
		if log.Anchor.Size > log.Size {
			t.Errorf("%s: %d entries, %d are anchored", log.Name, log.Size, log.Anchor.Size)
		}
		largest := shown[log.Name].largest()
		if log.Anchor.Size < largest {
			t.Errorf("%s: a tree of %d entries was shown, %d are anchored", log.Name, largest, log.Anchor.Size)
		}
		// Its root, too, has to be the one that others were shown, now or later.
		if err := shown[log.Name].saw(log.Anchor.Size, log.Anchor.Root); err != nil {
			t.Errorf("%s: %v", log.Name, err)
		}
		delete(shown, log.Name)
	}
	if len(shown) > 0 {
		t.Errorf("no reports of %v", shown)
	}
}

// rekorCLI has an auditor's tool look for every entry: it verifies promise,
// proof and checkpoint for itself.
func (l *ledger) rekorCLI(t *testing.T) {
	rekor := e2etest.NewProgram(t, stock.Path(t, stock.RekorCLI))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= len(l.signed) || t.Failed() {
					return
				}
				uuid := l.signed[n].Entry.UUID
				if r := rekor.Run(t, "--rekor_server", l.instance.URL, "--store_tree_state=false", "verify", "--uuid", uuid); r.Code != 0 {
					t.Error(r)
				}
			}
		})
	}
	wg.Wait()
	rekor.OK(t, "--rekor_server", l.instance.URL, "loginfo")
}

// TestSpentTokenStaysSpent: a token that bought a certificate before the power
// failed buys none after.
func TestSpentTokenStaysSpent(t *testing.T) { e2etest.OnEngines(t, testSpentTokenStaysSpent) }

func testSpentTokenStaysSpent(t *testing.T, i *e2etest.Instance) {
	client := newLedger(t, i).client(1)
	token := i.Token(t, subject)
	client.Token = func(context.Context) (string, error) { return token, nil }
	if _, err := client.Sign(context.Background(), [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	i.Kill(t)
	i.Launch(t)
	if _, err := client.Sign(context.Background(), [32]byte{2}); err == nil {
		t.Fatal("the token was taken a second time after a restart")
	}
	i.Healthy(t)
}
