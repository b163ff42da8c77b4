package appliance

import (
	"context"
	"crypto"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sigbox/sigbox/tuf"
)

// trust serves the TUF repository from memory and renews its online roles.
type trust struct {
	store               repositories
	snapshot, timestamp crypto.Signer
	interval            time.Duration
	atLeast             int64 // version of what is signed online
	logger              *slog.Logger
	ready               chan struct{}
	once                sync.Once
	current             atomic.Pointer[served]
	expires             *prometheus.GaugeVec
}

type served struct {
	repo  *tuf.Repository
	files map[string][]byte
}

func newTrust(ctx context.Context, store repositories, snapshot, timestamp crypto.Signer, interval time.Duration, logger *slog.Logger, metrics prometheus.Registerer) (*trust, error) {
	t := &trust{
		store: store, snapshot: snapshot, timestamp: timestamp, interval: interval, logger: logger, ready: make(chan struct{}),
		expires: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sigbox_tuf_expires_seconds", Help: "Unix time at which a TUF role's metadata expires.",
		}, []string{"role"}),
	}
	if err := metrics.Register(t.expires); err != nil {
		return nil, fmt.Errorf("registering metrics: %w", err)
	}
	repo, err := store.load(ctx)
	if err != nil {
		return nil, fmt.Errorf("loading the tuf repository: %w", err)
	}
	t.publish(repo)
	return t, nil
}

func (t *trust) publish(repo *tuf.Repository) {
	t.current.Store(&served{repo, repo.Files()})
	for _, e := range repo.Expiries() {
		t.expires.WithLabelValues(e.Role).Set(float64(e.Expires.Unix()))
	}
}

// Repository is what is served now.
func (t *trust) Repository() *tuf.Repository { return t.current.Load().repo }

// Ready implements service.
func (t *trust) Ready() <-chan struct{} { return t.ready }

// Run implements service. What cannot be renewed does not end the process:
// signing still works for clients that have the metadata, and readiness and the
// log say what is wrong.
func (t *trust) Run(ctx context.Context) error {
	t.renew(ctx)
	t.once.Do(func() { close(t.ready) })
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.renew(ctx)
		}
	}
}

func (t *trust) renew(ctx context.Context) {
	prev := t.Repository()
	next, err := t.store.renew(ctx, prev, func(r *tuf.Repository) (*tuf.Repository, error) {
		return r.Renew(time.Now(), tuf.Renewal{Snapshot: []crypto.Signer{t.snapshot}, Timestamp: []crypto.Signer{t.timestamp}, AtLeast: t.atLeast})
	})
	if next != prev {
		t.publish(next)
		t.logger.Info("tuf metadata was renewed", "expires", next.Expiries()[0].Expires)
	}
	if err != nil && ctx.Err() == nil {
		t.logger.Error("tuf metadata was not renewed", "error", err)
	}
}

// refresh takes over what another replica has renewed: a client that was there
// first would take an older version here for a rollback.
func (t *trust) refresh(ctx context.Context) *served {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	prev := t.Repository()
	next, err := t.store.newest(ctx, prev)
	if next != prev {
		t.publish(next)
	}
	if err != nil && ctx.Err() == nil {
		t.logger.Warn("looking for newer tuf metadata failed", "error", err)
	}
	return t.current.Load()
}

// problem says why clients would refuse the repository, or nil.
func (t *trust) problem(now time.Time) error {
	if e := t.Repository().Expiries()[0]; !now.Before(e.Expires) {
		return fmt.Errorf("the TUF role %s expired at %s", e.Role, e.Expires.Format(time.RFC3339))
	}
	return nil
}

// tufHandler serves /tuf/….
func (t *trust) tufHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, tufPath+"/")
		data, ok := t.refresh(r.Context()).files[name]
		if !ok {
			http.NotFound(w, r) // clients probe for the next root this way
			return
		}
		download(w, r, name, data)
	})
}

// trustHandler serves /trust/…: the same material for curl and a browser. It
// proves nothing by itself; clients pin the TUF root.
func (t *trust) trustHandler(extra map[string][]byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, trustPath+"/")
		repo := t.Repository()
		var data []byte
		switch name {
		case "root.json":
			data = repo.Root()
		case tuf.TrustedRootName, tuf.SigningConfigName:
			data, _ = repo.Target(name)
		default:
			data = extra[name]
		}
		if data == nil {
			http.NotFound(w, r)
			return
		}
		download(w, r, name, data)
	})
}

func download(w http.ResponseWriter, r *http.Request, name string, data []byte) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	h := w.Header()
	switch {
	case strings.HasSuffix(name, ".json"):
		h.Set("Content-Type", "application/json")
	case strings.HasSuffix(name, ".pem"):
		h.Set("Content-Type", "application/x-pem-file")
	default:
		h.Set("Content-Type", "application/octet-stream")
	}
	// Proxies must not hold back renewals or new roots.
	h.Set("Cache-Control", "no-cache")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		w.Write(data) // a client that has gone hears nothing
	}
}
