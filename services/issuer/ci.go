package issuer

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Audience is the audience of every token, which Sigstore clients and Fulcio
// know as the client id.
const Audience = "sigstore"

// clockSkew is how far ahead of this clock a token's expiry may lie beyond the
// longest lifetime: the clock may have been set back since it was minted.
const clockSkew = 5 * time.Minute

var (
	// ErrReplayed means that the token was redeemed before.
	ErrReplayed = errors.New("token was used before: each buys one certificate")
	// ErrExpired means that the token's time is over.
	ErrExpired = errors.New("token has expired")
)

// CIConfig says what an issuer for jobs needs.
type CIConfig struct {
	// URL is the issuer, such as https://sigbox.example.com/ci.
	URL string
	// Signer signs the tokens with RS256: an RSA key of 2048 bits or more. Cosign
	// takes no other algorithm for a token on its command line.
	Signer crypto.Signer
	// Dir holds the journal of redeemed tokens, made by [CreateCI].
	Dir string
	// Postgres, if set, is where redeemed tokens are remembered in place of Dir.
	// Its schema is made by whoever makes the database, from [Migrations].
	Postgres *pgxpool.Pool
	// DefaultTTL is the lifetime of a token that asks for none: 10 minutes if 0.
	DefaultTTL time.Duration
	// MaxTTL bounds the lifetime of every token: 1 hour if 0. It also bounds how
	// many redeemed tokens are remembered.
	MaxTTL time.Duration
	// Now is the clock: time.Now if nil.
	Now    func() time.Time
	Logger *slog.Logger
}

// CI is the issuer for jobs: it mints tokens, publishes the key that verifies
// them, and lets each be redeemed once.
type CI struct {
	cfg     CIConfig
	signer  jose.Signer
	handler http.Handler
	spent   redeemed
	ready   chan struct{}
}

// redeemed remembers the tokens that were redeemed: a journal or a ledger.
type redeemed interface {
	// redeem records id durably. It fails with ErrReplayed for the second caller
	// with the same id.
	redeem(ctx context.Context, id tokenID, expiry int64) error
	// forget drops the ids whose tokens have expired.
	forget(now time.Time) error
	// failed is closed when nothing can be redeemed any more.
	failed() <-chan struct{}
	close() error
}

// Token is a signed token and what it will buy.
type Token struct {
	// Raw is the token in JWS compact serialization. It is a secret.
	Raw string
	// Identity is what the certificate will carry and a verifier must name.
	Identity string
	Expiry   time.Time
}

// LogValue keeps the token itself out of logs.
func (t Token) LogValue() slog.Value {
	return slog.GroupValue(slog.String("identity", t.Identity), slog.Time("expiry", t.Expiry))
}

// CreateCI makes the empty journal of redeemed tokens in dir. An existing one is
// left as it is and is an error that satisfies errors.Is(err, fs.ErrExist).
func CreateCI(_ context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("creating the ci issuer's folder: %w", err)
	}
	if err := createJournal(journalPath(dir)); err != nil {
		return fmt.Errorf("creating the ci issuer's journal: %w", err)
	}
	return nil
}

// NewCI opens the issuer. The journal must exist, and no other process may have
// it open.
func NewCI(_ context.Context, cfg CIConfig) (*CI, error) {
	if cfg.DefaultTTL == 0 {
		cfg.DefaultTTL = 10 * time.Minute
	}
	if cfg.MaxTTL == 0 {
		cfg.MaxTTL = time.Hour
	}
	if cfg.DefaultTTL < time.Second || cfg.DefaultTTL > cfg.MaxTTL {
		return nil, fmt.Errorf("ci issuer: default token lifetime %s is not between 1s and the longest, %s", cfg.DefaultTTL, cfg.MaxTTL)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	base, err := issuerURL(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("ci issuer: %w", err)
	}
	signer, handler, err := publish(cfg.Signer, base)
	if err != nil {
		return nil, fmt.Errorf("ci issuer: %w", err)
	}
	spent, err := cfg.redeemed()
	if err != nil {
		return nil, err
	}
	c := &CI{cfg: cfg, signer: signer, handler: handler, spent: spent, ready: make(chan struct{})}
	close(c.ready)
	return c, nil
}

func (cfg CIConfig) redeemed() (redeemed, error) {
	if cfg.Postgres != nil {
		return &ledger{pool: cfg.Postgres}, nil
	}
	j, err := openJournal(journalPath(cfg.Dir), cfg.Now())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("ci issuer has no journal of redeemed tokens, was this instance made by init: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the ci issuer's journal: %w", err)
	}
	return j, nil
}

// issuerURL checks an issuer's URL: clients compare it as a string and append
// to it, so there is one way to write it.
func issuerURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("url: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		len(u.Path) < 2 || strings.HasSuffix(u.Path, "/") || u.String() != raw {
		return nil, fmt.Errorf("url %q is not of the form https://host/path", raw)
	}
	return u, nil
}

// publish makes the token signer and the handler that shows its public key.
func publish(key crypto.Signer, base *url.URL) (jose.Signer, http.Handler, error) {
	if key == nil {
		return nil, nil, errors.New("no signing key")
	}
	public, ok := key.Public().(*rsa.PublicKey)
	if !ok || public.Size() < 256 {
		return nil, nil, errors.New("the signing key is not an RSA key of 2048 bits or more")
	}
	jwk := jose.JSONWebKey{Key: public, Algorithm: string(jose.RS256), Use: "sig"}
	thumbprint, err := jwk.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return nil, nil, fmt.Errorf("naming the signing key: %w", err)
	}
	jwk.KeyID = base64.RawURLEncoding.EncodeToString(thumbprint)
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: cryptosigner.Opaque(key), KeyID: jwk.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("signing key: %w", err)
	}
	// There is no authorization endpoint: tokens are minted over the
	// administration socket. Issuers of workload tokens leave it out as well.
	discovery, err := json.Marshal(map[string]any{
		"issuer":                                base.String(),
		"jwks_uri":                              base.JoinPath("keys").String(),
		"response_types_supported":              []string{"id_token"},
		"subject_types_supported":               []string{"public"},
		"id_token_signing_alg_values_supported": []string{string(jose.RS256)},
		"scopes_supported":                      []string{"openid", "email"},
		"claims_supported":                      []string{"iss", "sub", "aud", "iat", "nbf", "exp", "jti", "email", "email_verified"},
	})
	if err != nil {
		return nil, nil, err
	}
	keys, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{jwk}})
	if err != nil {
		return nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+base.Path+discoveryPath, document(discovery, time.Hour))
	mux.Handle("GET "+base.Path+"/keys", document(keys, 10*time.Minute))
	return signer, mux, nil
}

const discoveryPath = "/.well-known/openid-configuration"

// document serves public JSON that changes only with a restart.
func document(body []byte, maxAge time.Duration) http.Handler {
	cache := fmt.Sprintf("public, max-age=%d", int(maxAge.Seconds()))
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", cache)
		_, _ = w.Write(body) // the client may have left
	})
}

// Mint signs a token for subject that lives for ttl, DefaultTTL if 0. See
// [Identity] for which subjects there are.
func (c *CI) Mint(subject string, ttl time.Duration) (Token, error) {
	if ttl == 0 {
		ttl = c.cfg.DefaultTTL
	}
	if ttl < time.Second || ttl > c.cfg.MaxTTL {
		return Token{}, fmt.Errorf("token lifetime %s is not between 1s and %s", ttl, c.cfg.MaxTTL)
	}
	identity, err := Identity(subject)
	if err != nil {
		return Token{}, err
	}
	var id tokenID
	rand.Read(id[:])
	now := c.cfg.Now().Truncate(time.Second)
	expiry := now.Add(ttl).Truncate(time.Second)
	claims, err := json.Marshal(map[string]any{
		"iss":            c.cfg.URL,
		"aud":            Audience,
		"sub":            identity,
		"email":          identity,
		"email_verified": true,
		"iat":            now.Unix(),
		"nbf":            now.Unix(),
		"exp":            expiry.Unix(),
		"jti":            base64.RawURLEncoding.EncodeToString(id[:]),
	})
	if err != nil {
		return Token{}, err
	}
	jws, err := c.signer.Sign(claims)
	if err != nil {
		return Token{}, fmt.Errorf("signing a token: %w", err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		return Token{}, fmt.Errorf("signing a token: %w", err)
	}
	return Token{Raw: raw, Identity: identity, Expiry: expiry}, nil
}

// Redeem spends the token with this id and expiry, both taken from claims whose
// signature was verified. It returns nil to exactly one caller per id, and only
// once that is durable. Then the id is remembered until the token has expired.
// Errors are [ErrReplayed], [ErrExpired] or say why the token cannot be spent.
func (c *CI) Redeem(ctx context.Context, jti string, expiry time.Time) error {
	id, err := base64.RawURLEncoding.Strict().DecodeString(jti)
	if err != nil || len(id) != len(tokenID{}) {
		return errors.New("token id is not one of this issuer")
	}
	now := c.cfg.Now()
	if !expiry.After(now) {
		return ErrExpired
	}
	if expiry.Sub(now) > c.cfg.MaxTTL+clockSkew {
		return fmt.Errorf("token lives longer than %s, the most this issuer grants", c.cfg.MaxTTL)
	}
	return c.spent.redeem(ctx, tokenID(id), expiry.Unix())
}

// Handler serves discovery and the keys below the issuer URL's path.
func (c *CI) Handler() http.Handler { return c.handler }

// Ready is closed when tokens can be minted and redeemed.
func (c *CI) Ready() <-chan struct{} { return c.ready }

// Run forgets expired tokens until ctx is done. It returns an error when the
// journal can no longer be written: nothing can be redeemed from then on.
func (c *CI) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.spent.failed():
		case <-tick.C:
		}
		if err := c.spent.forget(c.cfg.Now()); err != nil {
			return fmt.Errorf("ci issuer: %w", err)
		}
	}
}

// Close lets a redemption in flight finish and releases a journal.
func (c *CI) Close() error { return c.spent.close() }
