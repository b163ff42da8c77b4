package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/server/signer"
	"github.com/dexidp/dex/storage"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// The flows that [PeopleConfig.Grants] may name.
const (
	GrantAuthorizationCode = "authorization_code"
	GrantDeviceCode        = "device_code"
	GrantPassword          = "password"
	GrantRefreshToken      = "refresh_token"
)

// PeopleConfig says what an issuer for people needs. Users or Connectors must
// name at least one way to sign in.
type PeopleConfig struct {
	// URL is the issuer, such as https://sigbox.example.com/oidc.
	URL string
	// Dir holds the issuer's state, made by [CreatePeople].
	Dir string
	// Postgres, if set, is where the state is in place of Dir. Its schema is made
	// by whoever makes the database, from [Migrations].
	Postgres *pgxpool.Pool
	// Name is shown on the pages: "Sigstore" if empty.
	Name       string
	Users      []User
	Connectors []Connector
	// Clients may ask for tokens: the one public client "sigstore" if empty.
	Clients []Client
	// Grants are the flows offered: authorization_code and device_code if empty.
	// The password grant asks for a local user's password.
	Grants []string

	IDTokenTTL  time.Duration // lifetime of a token: 10 minutes if 0
	SignInTTL   time.Duration // how long a sign-in page stays good: 15 minutes if 0
	DeviceTTL   time.Duration // how long a device waits for its user: 5 minutes if 0
	KeyRotation time.Duration // how often the signing key changes: 6 hours if 0

	// RemoteIP finds the caller's address where a proxy is in front: the
	// connection's if nil.
	RemoteIP func(*http.Request) string
	// Metrics takes Dex's request metrics, whose names are general: a registry of
	// its own, or nil for none.
	Metrics *prometheus.Registry
	// Now is the clock: time.Now if nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// Client is a program that may ask for tokens on a person's behalf. Its id is
// the audience of the tokens.
type Client struct {
	ID   string
	Name string // shown to the person: ID if empty
	// RedirectURIs are matched exactly. A public client with none may use
	// http://localhost and loopback addresses on any port, and
	// urn:ietf:wg:oauth:2.0:oob.
	RedirectURIs []string
	// Public clients are programs on people's machines, which can keep no secret.
	Public bool
	Secret string
}

// People is the issuer for people.
type People struct {
	store   *store
	handler http.Handler
	stop    context.CancelFunc
	ready   chan struct{}
}

// CreatePeople makes the issuer's empty state in dir. An existing one is left as
// it is and is an error that satisfies errors.Is(err, fs.ErrExist).
func CreatePeople(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the oidc issuer's folder: %w", err)
	}
	if err := createStore(ctx, dir); err != nil {
		return fmt.Errorf("creating the oidc issuer's state: %w", err)
	}
	return nil
}

// NewPeople opens the issuer. Its state must exist, and no other process may
// have it open. Upstream providers that cannot be reached are tried again when
// someone wants to sign in with them, as long as there is another way.
func NewPeople(ctx context.Context, cfg PeopleConfig) (*People, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("oidc issuer: %w", err)
	}
	base, err := issuerURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("oidc issuer: %w", err)
	}
	state, err := cfg.openStore(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("oidc issuer has no state, was this instance made by init: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the oidc issuer's state: %w", err)
	}
	// Dex's key rotation and clean-up live as long as this issuer, not only as
	// long as the caller's context, which may belong to the start alone.
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	handler, err := serveDex(background, cfg, base, state)
	if err != nil {
		stop()
		return nil, errors.Join(fmt.Errorf("oidc issuer: %w", err), state.Close())
	}
	p := &People{store: state, handler: handler, stop: stop, ready: make(chan struct{})}
	close(p.ready)
	return p, nil
}

func (cfg PeopleConfig) openStore(ctx context.Context) (*store, error) {
	if cfg.Postgres != nil {
		return postgresStore(cfg.Postgres), nil
	}
	return openStore(ctx, cfg.Dir)
}

func (cfg *PeopleConfig) complete() error {
	for _, d := range []struct {
		name   string
		value  *time.Duration
		preset time.Duration
	}{
		{"id token lifetime", &cfg.IDTokenTTL, 10 * time.Minute},
		{"sign-in lifetime", &cfg.SignInTTL, 15 * time.Minute},
		{"device lifetime", &cfg.DeviceTTL, 5 * time.Minute},
		{"key rotation", &cfg.KeyRotation, 6 * time.Hour},
	} {
		if *d.value == 0 {
			*d.value = d.preset
		}
		if *d.value < time.Second {
			return fmt.Errorf("%s %s is shorter than 1s", d.name, *d.value)
		}
	}
	if cfg.Name == "" {
		cfg.Name = "Sigstore"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Clients) == 0 {
		cfg.Clients = []Client{{ID: Audience, Name: "Sigstore", Public: true}}
	}
	if len(cfg.Grants) == 0 {
		cfg.Grants = []string{GrantAuthorizationCode, GrantDeviceCode}
	}
	if len(cfg.Users) == 0 && len(cfg.Connectors) == 0 {
		return errors.New("there are neither users nor connectors: nobody could sign in")
	}
	if len(cfg.Users) == 0 && slices.Contains(cfg.Grants, GrantPassword) {
		return errors.New("the password grant is for local users, and there are none")
	}
	return nil
}

// serveDex puts the parts together: the store, what is configured on top of it,
// Dex, and the gate.
func serveDex(ctx context.Context, cfg PeopleConfig, base *url.URL, state *store) (handler http.Handler, err error) {
	// Dex registers its metrics with MustRegister.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("starting dex: %v", v)
		}
	}()
	grants, err := dexGrants(cfg.Grants)
	if err != nil {
		return nil, err
	}
	clients, err := dexClients(cfg.Clients, slices.Contains(cfg.Grants, GrantDeviceCode))
	if err != nil {
		return nil, err
	}
	connectors, err := dexConnectors(cfg.Connectors)
	if err != nil {
		return nil, err
	}
	users, err := newDirectory(state, cfg.Users)
	if err != nil {
		return nil, err
	}
	dex := server.Config{
		Issuer:                     cfg.URL,
		AllowedGrantTypes:          grants,
		SkipApprovalScreen:         true, // whoever typed a password has approved
		IDTokensValidFor:           cfg.IDTokenTTL,
		AuthRequestsValidFor:       cfg.SignInTTL,
		DeviceRequestsValidFor:     cfg.DeviceTTL,
		Web:                        server.WebConfig{WebFS: newPages(), Issuer: cfg.Name},
		Now:                        cfg.Now,
		Logger:                     cfg.Logger,
		PrometheusRegistry:         cfg.Metrics,
		ContinueOnConnectorFailure: true,
	}
	if len(cfg.Users) > 0 {
		connectors = append(connectors, storage.Connector{ID: server.LocalConnector, Type: server.LocalConnector, Name: "Email"})
		if slices.Contains(cfg.Grants, GrantPassword) {
			dex.PasswordConnector = server.LocalConnector
		}
	}
	dex.Storage = storage.WithStaticClients(storage.WithStaticConnectors(users, connectors), clients)
	dex.RefreshTokenPolicy, err = server.NewRefreshTokenPolicy(cfg.Logger, false, "168h", "720h", "3s")
	if err != nil {
		return nil, err
	}
	local := signer.LocalConfig{KeysRotationPeriod: cfg.KeyRotation.String()}
	keys, err := local.Open(ctx, state, cfg.IDTokenTTL, cfg.Now, cfg.Logger)
	if err != nil {
		return nil, err
	}
	keys.Start(ctx)
	// Start only logs its failures, and Dex would serve without a key.
	if _, err := keys.Algorithm(ctx); err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	dex.Signer = started{keys}
	s, err := server.NewServer(ctx, dex)
	if err != nil {
		return nil, err
	}
	return newGate(s, base.Path, cfg).routes(ctx, cfg, contentPolicy(cfg.Connectors))
}

// started is a signer whose key rotation runs already.
type started struct{ signer.Signer }

func (started) Start(context.Context) {}

// dexGrants spells the grants as the token endpoint knows them.
func dexGrants(configured []string) (grants []string, err error) {
	for _, g := range configured {
		switch g {
		case GrantDeviceCode:
			grants = append(grants, "urn:ietf:params:oauth:grant-type:device_code")
		case GrantAuthorizationCode, GrantPassword, GrantRefreshToken:
			grants = append(grants, g)
		default:
			return nil, fmt.Errorf("unknown grant %q: there are %s, %s, %s and %s", g,
				GrantAuthorizationCode, GrantDeviceCode, GrantPassword, GrantRefreshToken)
		}
	}
	return grants, nil
}

func dexClients(configured []Client, device bool) (all []storage.Client, err error) {
	seen := map[string]bool{}
	for _, c := range configured {
		switch {
		case c.ID == "":
			return nil, errors.New("a client has no id")
		case seen[c.ID]:
			return nil, fmt.Errorf("client %q is configured twice", c.ID)
		case c.Public && c.Secret != "":
			return nil, fmt.Errorf("client %q is public and has a secret", c.ID)
		case !c.Public && c.Secret == "":
			return nil, fmt.Errorf("client %q is not public and has no secret", c.ID)
		case !c.Public && len(c.RedirectURIs) == 0:
			return nil, fmt.Errorf("client %q is not public and has no redirect uri", c.ID)
		}
		seen[c.ID] = true
		if c.Name == "" {
			c.Name = c.ID
		}
		redirects := slices.Clone(c.RedirectURIs)
		if device && c.Public && len(redirects) > 0 {
			redirects = append(redirects, deviceRedirect) // Dex allows it unasked only where the list is empty
		}
		all = append(all, storage.Client{ID: c.ID, Name: c.Name, Secret: c.Secret, Public: c.Public, RedirectURIs: redirects})
	}
	return all, nil
}

// samlScript is what Dex's page for SAML runs to send its form on.
const samlScript = "\n\t\t\t\t    document.forms[0].submit();\n\t\t\t\t"

// contentPolicy lets the pages load their own style and nothing else, and run no
// script but SAML's where that is used. form-action is left out: browsers apply
// it to the redirect after a form too, which is how a client gets its code.
func contentPolicy(configured []Connector) string {
	policy := "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; frame-ancestors 'none'"
	if slices.ContainsFunc(configured, func(c Connector) bool { return c.Type == "saml" || c.Type == "samlExperimental" }) {
		sum := sha256.Sum256([]byte(samlScript))
		policy += "; script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	return policy
}

// Handler serves the issuer below its URL's path.
func (p *People) Handler() http.Handler { return p.handler }

// Ready is closed when people can sign in.
func (p *People) Ready() <-chan struct{} { return p.ready }

// Run waits until ctx is done. Dex rotates keys and collects expired sign-ins
// from the start on.
func (p *People) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close stops rotation and clean-up and closes the state. The handler must not
// be serving any more.
func (p *People) Close() error {
	p.stop()
	return p.store.Close()
}
