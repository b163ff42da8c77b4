package appliance

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/front"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/internal/unixsocket"
	"github.com/sigbox/sigbox/internal/version"
	"github.com/sigbox/sigbox/services/ctlog"
	"github.com/sigbox/sigbox/services/fulcio"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/services/tsa"
	"github.com/sigbox/sigbox/tuf"
)

// Paths below the origin.
const (
	ctPath     = "/ctlog"
	tufPath    = "/tuf"
	trustPath  = "/trust"
	peoplePath = "/oidc"
	ciPath     = "/ci"
)

// certificateLifetime is how long Fulcio's certificates last; the chain must
// cover it.
const certificateLifetime = 10 * time.Minute

// versionsPerEpoch is how many versions of the TUF metadata that is signed online
// a restored instance leaves out: clients may have seen some that are lost, and
// refuse lower ones.
const versionsPerEpoch = 1_000_000

// maxBody bounds any request body that has no bound of its own, in bytes.
const maxBody = 1 << 20

// Appliance is a running instance.
type Appliance struct {
	layout
	instance state.Instance
	started  time.Time
	logger   *slog.Logger
	registry *prometheus.Registry

	lock     *state.Lock
	db       *database // nil with SQLite
	audit    auditRecord
	services *services
	logs     *trillian.Service
	ci       *issuer.CI
	people   *issuer.People // nil where nobody could sign in
	rekorLog *rekor.Service
	trust    *trust
	writes   writes
	archiver *archiver  // nil without an archive
	copying  sync.Mutex // held while a backup is made
	ready    *readiness
	server   *front.Server
	ct       http.Handler
	issuers  []string // that Fulcio trusts
	chains   struct{ fulcio, tsa []*x509.Certificate }

	// Listener is where the origin is served; known once Open has returned.
	Listener net.Listener
	admin    net.Listener
	metrics  net.Listener
}

// Open starts every service of the instance in dir and listens, without
// answering yet: Run does. An error leaves nothing open.
func Open(ctx context.Context, dir string, logger *slog.Logger) (_ *Appliance, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	l, _, err := locate(dir)
	if err != nil {
		return nil, err
	}
	a := &Appliance{
		layout: l, started: time.Now(), logger: logger,
		registry: prometheus.NewRegistry(), ready: new(readiness), services: newServices(ctx, logger),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close())
		}
	}()
	if a.db, a.instance, err = l.openInstance(ctx); err != nil {
		return nil, err
	}
	if a.db != nil {
		// First of all: it closes last.
		if err := a.services.start("database", a.db); err != nil {
			return nil, err
		}
	}
	if l.cfg.URL != a.instance.URL {
		return nil, fmt.Errorf("%w: url is %s, but the instance was made for %s, which its trust material and its issuers name", ErrConfig, l.cfg.URL, a.instance.URL)
	}
	if a.lock, err = state.Acquire(dir); err != nil {
		return nil, err
	}
	if err := a.checkEpoch(a.instance); err != nil {
		return nil, err
	}
	if a.audit, err = l.openAudit(a.db, a.instance.ID, logger); err != nil {
		return nil, err
	}
	if err := a.open(ctx); err != nil {
		return nil, err
	}
	return a, a.listen()
}

// open builds the services, each when what it needs is ready.
func (a *Appliance) open(ctx context.Context) error {
	signers, err := a.loadKeys()
	if err != nil {
		return err
	}
	if err := a.loadChains(signers); err != nil {
		return err
	}

	if a.db != nil {
		if err := a.db.checkKeys(ctx, signers); err != nil {
			return err
		}
	}

	logs, err := a.logsConfig(a.instance, a.named("trillian"))
	if err != nil {
		return err
	}
	logs.Metrics = a.registry
	a.logs, err = trillian.New(ctx, logs)
	if err != nil {
		return fmt.Errorf("opening log storage: %w", err)
	}
	if err := a.services.start("trillian", a.logs); err != nil {
		return err
	}

	a.ci, err = issuer.NewCI(ctx, issuer.CIConfig{
		URL: a.cfg.URL + ciPath, Signer: signers[keyCI], Dir: a.issuer(), Postgres: a.db.Pool(),
		DefaultTTL: a.cfg.CI.DefaultTTL, MaxTTL: a.cfg.CI.MaxTTL, Logger: a.named("ci"),
	})
	if err != nil {
		return fmt.Errorf("opening the ci issuer: %w", err)
	}
	if err := a.services.start("ci issuer", a.ci); err != nil {
		return err
	}
	people, err := a.openPeople(ctx)
	if err != nil {
		return err
	}

	ct, err := ctlog.New(ctx, ctlog.Config{
		TreeID: a.instance.CTTree, Signer: signers[keyCT], Roots: a.chains.fulcio[len(a.chains.fulcio)-1:],
		Log: a.logs.Client(), Dir: a.run(), Logger: a.named("ctlog"), Frozen: a.frozen(a.instance.CTTree),
	})
	if err != nil {
		return fmt.Errorf("opening the ct log: %w", err)
	}
	if err := a.services.start("ctlog", ct); err != nil {
		return err
	}

	issuers := a.fulcioIssuers(people)
	for _, i := range issuers {
		a.issuers = append(a.issuers, i.URL+i.Pattern)
	}
	ca, err := fulcio.New(ctx, fulcio.Config{
		Signer: signers[keyFulcio], Chain: a.chains.fulcio, Issuers: issuers, CIProviders: a.ciProviders(),
		CTLog: ct.Handler(), CTLogKey: signers[keyCT].Public(), Audit: a.audit.Append, Logger: a.named("fulcio"), Metrics: a.registry,
	})
	if err != nil {
		return fmt.Errorf("opening fulcio: %w", err)
	}
	if err := a.services.start("fulcio", ca); err != nil {
		return err
	}

	address, port := a.logs.RekorAddress()
	log, err := rekor.New(ctx, rekor.Config{
		TreeID: a.instance.RekorTree, Signer: signers[keyRekor], Hostname: hostname(a.cfg.URL),
		TrillianAddress: address, TrillianPort: port, Dir: a.layout.rekor(), Postgres: a.db.Pool(), MaxBodyBytes: a.cfg.Rekor.MaxBodyBytes,
		Audit: a.audit.Append, Logger: a.named("rekor"), Metrics: a.registry, Frozen: a.frozen(a.instance.RekorTree),
		Outbox: a.archive() != "",
	})
	if err != nil {
		return fmt.Errorf("opening rekor: %w", err)
	}
	a.rekorLog = log
	if err := a.services.start("rekor", log); err != nil {
		return err
	}

	stamps, err := tsa.New(ctx, tsa.Config{
		Signer: signers[keyTSA], Chain: a.chains.tsa, Logger: a.named("tsa"), Metrics: a.registry,
	})
	if err != nil {
		return fmt.Errorf("opening the timestamp authority: %w", err)
	}
	if err := a.services.start("tsa", stamps); err != nil {
		return err
	}

	a.trust, err = newTrust(ctx, a.repositories(a.db), signers[keySnapshot], signers[keyTimestamp], a.cfg.TUF.CheckInterval, a.named("tuf"), a.registry)
	if err != nil {
		return err
	}
	if sum := a.trust.Repository().RootChecksum(); sum != a.instance.RootSHA256 {
		return fmt.Errorf("the first TUF root has SHA-256 %s, but the instance was made with %s: clients would refuse it", sum, a.instance.RootSHA256)
	}
	a.trust.atLeast = int64(a.instance.Epoch) * versionsPerEpoch
	if err := a.services.start("tuf", a.trust); err != nil {
		return err
	}

	a.ct = ct.Handler()
	if err := a.startArchive(ctx); err != nil {
		return err
	}
	a.watch()
	// Without the CT log no certificate could be issued: that is said before a
	// one-time token is spent.
	issue := a.ready.writable(ca.Handler(), a.frozen(a.instance.CTTree))
	routes := map[string]http.Handler{
		"/api/v1/signingCert":          issue,
		"/api/v1/rootCert":             ca.Handler(),
		"/api/v2/":                     issue,
		"/api/v1/log":                  log.Handler(),
		"/api/v1/log/":                 a.ready.writable(log.Handler()),
		"/api/v1/log/entries/retrieve": log.Handler(), // a POST that reads
		"/api/v1/index/retrieve":       log.Handler(),
		"/api/v1/timestamp":            stamps.Handler(),
		"/api/v1/timestamp/certchain":  stamps.Handler(),
		ctPath + "/ct/v1/":             a.ready.writable(ct.Handler()),
		ciPath + "/":                   a.ci.Handler(),
		tufPath + "/":                  a.trust.tufHandler(),
		trustPath + "/":                a.trust.trustHandler(map[string][]byte{"ca.pem": pki.Encode(a.chains.fulcio...), "tsa.pem": pki.Encode(a.chains.tsa...)}),
		"/healthz":                     healthHandler(),
		"/readyz":                      a.ready.readyHandler(),
	}
	if people != nil {
		routes[peoplePath+"/"] = people
	}
	return a.compose(routes)
}

func (a *Appliance) named(service string) *slog.Logger { return a.logger.With("service", service) }

// loadKeys decrypts the online keys, side by side.
func (a *Appliance) loadKeys() (map[string]crypto.Signer, error) {
	pass, err := keys.ReadPassphrase(a.passphrase())
	if err != nil {
		return nil, err
	}
	var (
		signers = map[string]crypto.Signer{}
		errs    []error
		mu      sync.Mutex
		wg      sync.WaitGroup
	)
	for _, name := range onlineKeys {
		wg.Go(func() {
			key, err := keys.Load(a.key(name), pass)
			mu.Lock()
			defer mu.Unlock()
			signers[name], errs = key, append(errs, err)
		})
	}
	wg.Wait()
	return signers, errors.Join(errs...)
}

// loadChains reads the certificates and checks that the keys are theirs.
func (a *Appliance) loadChains(signers map[string]crypto.Signer) error {
	for _, c := range []struct {
		file  string
		key   string
		usage x509.ExtKeyUsage
		chain *[]*x509.Certificate
	}{
		{chainFulcio, keyFulcio, x509.ExtKeyUsageCodeSigning, &a.chains.fulcio},
		{chainTSA, keyTSA, x509.ExtKeyUsageTimeStamping, &a.chains.tsa},
	} {
		data, err := os.ReadFile(a.cert(c.file))
		if err != nil {
			return fmt.Errorf("loading certificates: %w", err)
		}
		if *c.chain, err = pki.Parse(data); err == nil {
			err = pki.CheckChain(*c.chain, signers[c.key], c.usage)
		}
		if err != nil {
			return fmt.Errorf("loading certificates %s: %w", c.file, err)
		}
	}
	return nil
}

// watch says what must hold for a signature to succeed.
func (a *Appliance) watch() {
	a.ready.space = &space{dirs: []string{a.anchors()}, min: a.cfg.Limits.MinFreeBytes}
	if a.db == nil {
		a.ready.space.dirs = append(a.ready.space.dirs, a.data(""), a.layout.audit())
	}
	a.ready.add("disk", a.ready.space.check)
	a.ready.gate = a.ready.space.check
	if a.db != nil {
		a.ready.add("database", a.db.problem)
		a.ready.gate = func(ctx context.Context) error { return errors.Join(a.ready.space.check(ctx), a.db.problem(ctx)) }
	}
	a.ready.record = a.audit.Check
	a.ready.add("audit", a.audit.Check)
	a.ready.add("services", func(context.Context) error { return context.Cause(a.services.ctx) })
	a.ready.add("fulcio", func(context.Context) error {
		return chainCovers(a.chains.fulcio, time.Now(), certificateLifetime)
	})
	a.ready.add("tsa", func(context.Context) error { return chainCovers(a.chains.tsa, time.Now(), 0) })
	a.ready.add("tuf", func(context.Context) error { return a.trust.problem(time.Now()) })
	for _, log := range logsOf(a.instance) {
		a.ready.add(log.name, func(ctx context.Context) error {
			if _, _, err := a.logs.Size(ctx, log.tree); err != nil {
				return err
			}
			return a.logs.Frozen(log.tree)
		})
	}
}

// frozen tells why nothing may be signed for a log, if so.
func (a *Appliance) frozen(tree int64) func() error {
	return func() error { return a.logs.Frozen(tree) }
}

func (a *Appliance) compose(routes map[string]http.Handler) (err error) {
	for path, h := range routes {
		routes[path] = a.writes.track(a.db.honest(h))
	}
	cfg := front.Config{
		Routes: routes, MaxBodyBytes: max(maxBody, a.cfg.Rekor.MaxBodyBytes), MaxInFlight: a.cfg.Limits.MaxInFlight,
		MaxQueued: a.cfg.Limits.MaxQueued, DrainTimeout: a.cfg.Limits.DrainTimeout, Logger: a.named("front"), Metrics: a.registry,
	}
	if a.cfg.TLS.CertFile != "" {
		if cfg.TLS, err = front.TLSConfig(a.cfg.Path(a.cfg.TLS.CertFile), a.cfg.Path(a.cfg.TLS.KeyFile)); err != nil {
			return err
		}
	}
	a.server, err = front.New(cfg)
	return err
}

func (a *Appliance) listen() (err error) {
	if a.Listener, err = net.Listen("tcp", a.cfg.Listen); err != nil {
		return fmt.Errorf("%w: %w", ErrListen, err)
	}
	if a.admin, err = unixsocket.Listen(a.socket()); err != nil {
		return err
	}
	if a.cfg.Metrics != "" {
		if a.metrics, err = net.Listen("tcp", a.cfg.Metrics); err != nil {
			return fmt.Errorf("%w for metrics: %w", ErrListen, err)
		}
	}
	return nil
}

// ErrListen means that an address could not be listened on.
var ErrListen = errors.New("listening")

// Run answers requests until ctx ends or something fails. It stops in reverse:
// the origin drains first, storage closes last.
func (a *Appliance) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.close()) }()
	if err := a.note(ctx, audit.Event{Type: audit.Started, Service: "sigboxd", Fields: map[string]any{
		"version": version.Get().Version,
	}}); err != nil {
		return err
	}

	frontCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(a.services.ctx, func() { stop(context.Cause(a.services.ctx)) })()

	var side sync.WaitGroup
	serveSide := func(l net.Listener, h http.Handler) {
		srv := &http.Server{
			Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
			ErrorLog: slog.NewLogLogger(a.logger.Handler(), slog.LevelDebug),
		}
		side.Go(func() {
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				a.services.fail(fmt.Errorf("serving %s: %w", l.Addr(), err))
			}
		})
		side.Go(func() {
			<-frontCtx.Done()
			srv.Close() // nothing on it is worth waiting for
		})
	}
	serveSide(a.admin, a.adminHandler())
	if a.metrics != nil {
		mux := http.NewServeMux()
		// Upstream's libraries count in the default registry.
		mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{a.registry, prometheus.DefaultGatherer}, promhttp.HandlerOpts{}))
		serveSide(a.metrics, mux)
	}
	a.logger.Info("serving", "url", a.cfg.URL, "listen", a.Listener.Addr().String(), "took", time.Since(a.started))
	err = a.server.Run(frontCtx, a.Listener)
	stop(nil)
	side.Wait()
	// A backup under way has lost its reader; it ends before what it reads is closed.
	a.copying.Lock()
	defer a.copying.Unlock()
	a.Listener, a.admin, a.metrics = nil, nil, nil
	if err != nil {
		return err
	}
	if cause := context.Cause(a.services.ctx); cause != nil {
		return cause
	}
	a.logger.Info("stopping", "cause", context.Cause(ctx))
	return a.note(context.WithoutCancel(ctx), audit.Event{Type: audit.Stopped, Service: "sigboxd"})
}

// note records an event of the instance's own. A record that is damaged takes
// none; /readyz says so, and what is there is served all the same.
func (a *Appliance) note(ctx context.Context, e audit.Event) error {
	err := a.audit.Append(ctx, e)
	if errors.Is(err, audit.ErrDamaged) {
		return nil
	}
	return err
}

// close ends what Open started, in reverse.
func (a *Appliance) close() error {
	var errs []error
	for _, l := range []net.Listener{a.Listener, a.admin, a.metrics} {
		if l != nil {
			errs = append(errs, l.Close())
		}
	}
	if a.lock != nil { // or else it may be another process's
		if err := os.Remove(a.socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, a.services.stop())
	if a.audit != nil {
		errs = append(errs, a.audit.Close())
	}
	if a.lock != nil {
		errs = append(errs, a.lock.Release())
	}
	return errors.Join(errs...)
}

// Status tells how the running instance is.
func (a *Appliance) Status(ctx context.Context) Status {
	problems := a.ready.problems(ctx)
	st := Status{
		Running: true, Ready: len(problems) == 0, Problems: problems, ID: a.instance.ID, URL: a.cfg.URL,
		Version: version.Get().Version, PID: os.Getpid(), Started: a.started.UTC(), RootSHA256: a.instance.RootSHA256,
		Quickstart: a.cfg.Quickstart, Issuers: a.issuers, Epoch: a.instance.Epoch,
	}
	if a.archiver != nil {
		st.Archive = a.archiver.status()
	}
	for _, log := range logsOf(a.instance) {
		if state, err := a.logs.State(log.tree); err == nil { // or else it is among the problems
			st.Logs = append(st.Logs, logStatus(log, state))
		}
	}
	for _, e := range a.trust.Repository().Expiries() {
		st.Expiries = append(st.Expiries, Expiry{"tuf " + e.Role, e.Expires})
	}
	for _, c := range append(a.chains.fulcio[:len(a.chains.fulcio):len(a.chains.fulcio)], a.chains.tsa...) {
		st.Expiries = append(st.Expiries, Expiry{"certificate " + c.Subject.CommonName, c.NotAfter})
	}
	return st
}

// Config is the effective configuration.
func (a *Appliance) Config() *config.Config { return a.cfg }

// Trust is the TUF repository that is served.
func (a *Appliance) Trust() *tuf.Repository { return a.trust.Repository() }
