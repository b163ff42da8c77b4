// Package config reads the one configuration file of the appliance. The doc
// comments of its types are the reference.
//
// The file is strict: an unknown key is an error. Paths are relative to the
// file. Secrets are named by path, never written here.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// FileName is the configuration's name in an instance folder.
const FileName = "sigbox.yaml"

// maxFile bounds what is read, in bytes.
const maxFile = 1 << 20

// Config is the whole configuration.
type Config struct {
	// URL is the one public origin: scheme, host and port, no path. Clients
	// find every service under it, and it is part of what gets signed (issuer
	// names), so it cannot change later without new trust material.
	URL string `yaml:"url"`
	// Listen is the address to serve on, HOST:PORT. Plain HTTP is served on
	// loopback only; elsewhere tls is needed.
	Listen string `yaml:"listen"`
	// TLS is a certificate and its key, or the word "terminated" where a proxy
	// in front ends TLS.
	TLS TLS `yaml:"tls,omitempty"`
	// Operator names the organisation in the CA certificates.
	Operator string `yaml:"operator,omitempty"`
	// Quickstart marks an instance made for trying out, with every key on the
	// machine. It says so each time it starts.
	Quickstart bool `yaml:"quickstart,omitempty"`

	Storage Storage `yaml:"storage,omitempty"`
	Keys    Keys    `yaml:"keys,omitempty"`
	// AuditDir holds the record of certificates and entries, and nothing else.
	// Default audit. Not with engine postgres, which keeps it in the database.
	AuditDir string `yaml:"audit_dir,omitempty"`
	// RunDir holds the sockets. Default run.
	RunDir string `yaml:"run_dir,omitempty"`

	// Metrics is where Prometheus reads /metrics, HOST:PORT. Empty: nowhere.
	Metrics string `yaml:"metrics,omitempty"`

	Log    Log    `yaml:"log,omitempty"`
	Fulcio Fulcio `yaml:"fulcio,omitempty"`
	Rekor  Rekor  `yaml:"rekor,omitempty"`
	CI     CI     `yaml:"ci,omitempty"`
	People People `yaml:"people,omitempty"`
	Limits Limits `yaml:"limits,omitempty"`
	TUF    TUF    `yaml:"tuf,omitempty"`
	dir    string // folder of the file
}

// TLS is how connections are protected.
type TLS struct {
	// CertFile is the certificate chain in PEM, leaf first.
	CertFile string `yaml:"cert_file,omitempty"`
	// KeyFile is its private key in PEM, readable by the service alone.
	KeyFile string `yaml:"key_file,omitempty"`
	// Terminated is set by writing "tls: terminated".
	Terminated bool `yaml:"-"`
}

// Storage is where state lives.
type Storage struct {
	// Engine is sqlite, the default, for one machine, or postgres, for several
	// replicas that keep all their state in one database.
	Engine string `yaml:"engine,omitempty"`
	// Dir holds the databases of sqlite. A local file system: network file
	// systems are refused. Default data.
	Dir string `yaml:"dir,omitempty"`
	// DSNFile holds the connection string of postgres, a URL or key=value pairs
	// as libpq takes them, readable by the service alone. Beyond this machine
	// sslmode is verify-full, said or not, and less is refused.
	DSNFile string `yaml:"dsn_file,omitempty"`
	// AnchorDir holds the anchors: the newest published root of each log, by which
	// an older copy of the databases is told. A local folder of this instance's own,
	// best on another volume than dir. Default anchor.
	AnchorDir string `yaml:"anchor_dir,omitempty"`
	// ArchiveDir is an existing folder to which the entries of both logs, their rows
	// of the search index and the TUF repository are appended within a second, so
	// that a restored backup can be rolled forward. A local folder of this instance's
	// own on another volume than dir. Default: no archive. Not with postgres, whose
	// server has an archive of its own.
	ArchiveDir string `yaml:"archive_dir,omitempty"`
}

// The storage engines.
const (
	SQLite   = "sqlite"
	Postgres = "postgres"
)

// Keys says where the online keys are.
type Keys struct {
	// Dir holds encrypted PKCS#8 files. Default keys.
	Dir string `yaml:"dir,omitempty"`
	// PassphraseFile opens them. Default: the systemd credential "passphrase"
	// where there is one ($CREDENTIALS_DIRECTORY), else keys/passphrase.
	PassphraseFile string `yaml:"passphrase_file,omitempty"`
}

// Log is about both transparency logs.
type Log struct {
	// SequenceOnWrite integrates an entry before its writer is answered.
	// Default true. False leaves it to the timed pass.
	SequenceOnWrite *bool `yaml:"sequence_on_write,omitempty"`
	// SequenceInterval is the time between timed passes. Default 1s.
	SequenceInterval time.Duration `yaml:"sequence_interval,omitempty"`
	// CTMaxRootAge is the age at which an idle CT log's tree head is signed
	// anew. Default 1h.
	CTMaxRootAge time.Duration `yaml:"ct_max_root_age,omitempty"`
	// ScrubBytesPerSecond is how fast the background scrub reads, which computes
	// both logs anew from their entries. Default 1 MiB.
	ScrubBytesPerSecond int64 `yaml:"scrub_bytes_per_second,omitempty"`
	// ScrubInterval is the time between two passes of it. Default 1h.
	ScrubInterval time.Duration `yaml:"scrub_interval,omitempty"`
}

// Fulcio is about the certificate authority.
type Fulcio struct {
	// Issuers whose tokens it takes, besides the instance's own two.
	Issuers []Issuer `yaml:"issuers,omitempty"`
	// CIProviders say, by name, how the claims of a CI system's tokens become a
	// certificate, for issuers of type ci-provider.
	CIProviders map[string]CIProvider `yaml:"ci_providers,omitempty"`
}

// CIProvider maps claims to a certificate. Its values are names of claims, or
// templates over them where they contain "{{".
type CIProvider struct {
	// Defaults stand in for claims that a token lacks.
	Defaults map[string]string `yaml:"defaults,omitempty"`
	// Extensions maps names of Fulcio's certificate extensions
	// (build-signer-uri, source-repository-digest and so on) to values.
	Extensions map[string]string `yaml:"extensions,omitempty"`
	// SubjectTemplate gives the subject alternative name, a URI.
	SubjectTemplate string `yaml:"subject_template"`
}

// Issuer is an OIDC issuer that Fulcio trusts.
type Issuer struct {
	// URL is the issuer exactly as its tokens name it.
	URL string `yaml:"url,omitempty"`
	// Pattern stands in place of url for issuers with changing names: each *
	// matches one host label or path segment.
	Pattern string `yaml:"pattern,omitempty"`
	// ClientID is the audience that tokens must carry. Default sigstore.
	ClientID string `yaml:"client_id,omitempty"`
	// Type is email, username, uri, spiffe, kubernetes, github-workflow,
	// gitlab-pipeline, buildkite-job, codefresh-workflow, chainguard-identity
	// or ci-provider.
	Type string `yaml:"type"`
	// IssuerClaim names the claim with the issuer to certify, where the token
	// was made by a broker ($.federated_claims.connector_id, for Dex).
	IssuerClaim string `yaml:"issuer_claim,omitempty"`
	// SubjectDomain is required of uri and username.
	SubjectDomain string `yaml:"subject_domain,omitempty"`
	// SPIFFETrustDomain is required of spiffe.
	SPIFFETrustDomain string `yaml:"spiffe_trust_domain,omitempty"`
	// ChallengeClaim is the claim a client proves possession over.
	ChallengeClaim string `yaml:"challenge_claim,omitempty"`
	// CIProvider names an entry of ci_providers; required of ci-provider.
	CIProvider string `yaml:"ci_provider,omitempty"`
	// SkipEmailVerification takes e-mail addresses that the issuer has not
	// verified. Only for issuers that never say so and always verify.
	SkipEmailVerification bool `yaml:"skip_email_verification,omitempty"`
	// CAFile is the CA of the issuer's own HTTPS server, in PEM.
	CAFile string `yaml:"ca_file,omitempty"`
	// TokenFile holds a bearer token for the issuer's own host, as a Kubernetes
	// API server wants it. It is read anew each time.
	TokenFile string `yaml:"token_file,omitempty"`
	// Contact and Description are for people.
	Contact     string `yaml:"contact,omitempty"`
	Description string `yaml:"description,omitempty"`
}

// Rekor is about the transparency log's API.
type Rekor struct {
	// MaxBodyBytes bounds a proposed entry. Default 8 MiB.
	MaxBodyBytes int64 `yaml:"max_body_bytes,omitempty"`
}

// CI is the issuer of one-time tokens for jobs.
type CI struct {
	// DefaultTTL is a token's lifetime unless asked otherwise. Default 10m.
	DefaultTTL time.Duration `yaml:"default_ttl,omitempty"`
	// MaxTTL is the longest. Default 1h.
	MaxTTL time.Duration `yaml:"max_ttl,omitempty"`
}

// People is the issuer for people. With neither users nor connectors it is not
// served.
type People struct {
	// Users are local accounts.
	Users []User `yaml:"users,omitempty"`
	// Grants are the OAuth 2.0 grants to offer, of authorization_code,
	// device_code, password and refresh_token. Default authorization_code and
	// device_code.
	Grants []string `yaml:"grants,omitempty"`
	// Connectors are Dex connectors (LDAP, OIDC, SAML and the like), in Dex's
	// own form.
	Connectors []Connector `yaml:"connectors,omitempty"`
}

// User is a local account.
type User struct {
	Email string `yaml:"email"`
	// Username is shown; default the address.
	Username string `yaml:"username,omitempty"`
	// ID never changes; default derived from the address.
	ID string `yaml:"id,omitempty"`
	// PasswordHash is bcrypt of cost 10 or more ("sigboxd hash-password").
	PasswordHash string `yaml:"password_hash"`
}

// Connector is an identity provider behind Dex.
type Connector struct {
	// Type is Dex's: ldap, oidc, saml, github, gitlab and so on.
	Type string `yaml:"type"`
	// ID never changes once people have signed in through it.
	ID string `yaml:"id"`
	// Name is shown on the sign-in page.
	Name string `yaml:"name,omitempty"`
	// Config is as Dex documents it for the type.
	Config map[string]any `yaml:"config"`
}

// Limits protect the process.
type Limits struct {
	// MaxInFlight is how many writes are worked on at once; more wait their
	// turn. Default 64.
	MaxInFlight int `yaml:"max_in_flight,omitempty"`
	// MaxQueued is how many may wait; more are answered 503 with Retry-After.
	// Default 1024.
	MaxQueued int `yaml:"max_queued,omitempty"`
	// MinFreeBytes is the free disk space below which nothing is signed.
	// Default 64 MiB.
	MinFreeBytes int64 `yaml:"min_free_bytes,omitempty"`
	// DrainTimeout is how long requests under way may take after SIGTERM.
	// Default 20s.
	DrainTimeout time.Duration `yaml:"drain_timeout,omitempty"`
}

// TUF is about the renewal of the online roles.
type TUF struct {
	// CheckInterval is the time between looks at what expires. Default 10m.
	CheckInterval time.Duration `yaml:"check_interval,omitempty"`
}

// UnmarshalYAML takes a mapping or the word "terminated".
func (t *TLS) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode {
		if n.Value != "terminated" {
			return fmt.Errorf("line %d: tls is a mapping with cert_file and key_file, or the word terminated, not %q", n.Line, n.Value)
		}
		t.Terminated = true
		return nil
	}
	// A nested decode forgets that the outer one is strict.
	for i := 0; i+1 < len(n.Content); i += 2 {
		if k := n.Content[i]; k.Value != "cert_file" && k.Value != "key_file" {
			return fmt.Errorf("line %d: field %s not found in tls", k.Line, k.Value)
		}
	}
	type plain TLS
	return n.Decode((*plain)(t))
}

// MarshalYAML is UnmarshalYAML's inverse.
func (t TLS) MarshalYAML() (any, error) {
	if t.Terminated {
		return "terminated", nil
	}
	type plain TLS
	return plain(t), nil
}

// IsZero lets an empty value be omitted.
func (t TLS) IsZero() bool { return t == TLS{} }

// Load reads FileName in dir.
func Load(dir string) (*Config, error) {
	path := filepath.Join(dir, FileName)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("configuration %s is larger than %d bytes", path, maxFile)
	}
	c, err := Parse(data, dir)
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", path, err)
	}
	return c, nil
}

// Parse reads a configuration whose relative paths start at dir, fills in what
// is left to defaults and checks it. All that is wrong is reported at once.
func Parse(data []byte, dir string) (*Config, error) {
	var c Config
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one YAML document")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	c.dir = abs
	c.setDefaults()
	if err := c.validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Marshal writes the configuration as YAML.
func (c *Config) Marshal() ([]byte, error) { return yaml.Marshal(c) }

// Path resolves a path of the configuration.
func (c *Config) Path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(c.dir, p)
}

func (c *Config) setDefaults() {
	def(&c.Operator, "sigbox")
	def(&c.Storage.Engine, SQLite)
	if c.Storage.Engine == SQLite {
		def(&c.Storage.Dir, "data")
		def(&c.AuditDir, "audit")
	}
	def(&c.Storage.AnchorDir, "anchor")
	def(&c.Keys.Dir, "keys")
	if cred := os.Getenv("CREDENTIALS_DIRECTORY"); c.Keys.PassphraseFile == "" && cred != "" {
		if p := filepath.Join(cred, "passphrase"); fileExists(p) {
			c.Keys.PassphraseFile = p
		}
	}
	def(&c.Keys.PassphraseFile, "keys/passphrase")
	def(&c.RunDir, "run")
	on := true
	def(&c.Log.SequenceOnWrite, &on)
	def(&c.Log.SequenceInterval, time.Second)
	def(&c.Log.CTMaxRootAge, time.Hour)
	def(&c.Log.ScrubBytesPerSecond, 1<<20)
	def(&c.Log.ScrubInterval, time.Hour)
	def(&c.Rekor.MaxBodyBytes, 8<<20)
	def(&c.CI.DefaultTTL, 10*time.Minute)
	def(&c.CI.MaxTTL, time.Hour)
	if len(c.People.Grants) == 0 {
		c.People.Grants = []string{"authorization_code", "device_code"}
	}
	def(&c.Limits.MaxInFlight, 64)
	def(&c.Limits.MaxQueued, 1024)
	def(&c.Limits.MinFreeBytes, 64<<20)
	def(&c.Limits.DrainTimeout, 20*time.Second)
	def(&c.TUF.CheckInterval, 10*time.Minute)
	for i := range c.Fulcio.Issuers {
		def(&c.Fulcio.Issuers[i].ClientID, "sigstore")
	}
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (c *Config) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if u, err := url.Parse(c.URL); c.URL == "" {
		bad("url is missing: the origin that clients use, for example https://sigbox.example.com")
	} else if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		bad("url %q is not an http or https origin", c.URL)
	} else if strings.TrimSuffix(c.URL, "/") != u.Scheme+"://"+u.Host {
		bad("url %q has more than scheme, host and port", c.URL)
	} else if c.URL = strings.TrimSuffix(c.URL, "/"); u.Scheme == "http" && !isLoopback(u.Hostname()) {
		bad("url %q is plain http beyond loopback: clients would send their tokens in the clear; use https", c.URL)
	}
	host, _, err := net.SplitHostPort(c.Listen)
	switch {
	case c.Listen == "":
		bad("listen is missing: the address to serve on, for example 127.0.0.1:8080")
	case err != nil:
		bad("listen %q is not HOST:PORT", c.Listen)
	case !isLoopback(host) && c.TLS.IsZero():
		bad("listen %q is not loopback: set tls (cert_file and key_file), or tls: terminated where a proxy in front ends TLS", c.Listen)
	}
	if !c.TLS.Terminated && (c.TLS.CertFile == "") != (c.TLS.KeyFile == "") {
		bad("tls needs both cert_file and key_file")
	}
	if c.TLS.CertFile != "" && strings.HasPrefix(c.URL, "http://") {
		bad("url %q is http, but tls is set", c.URL)
	}
	if c.Metrics != "" {
		if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
			bad("metrics %q is not HOST:PORT", c.Metrics)
		}
	}
	c.Storage.validate(c, bad)
	if c.Log.ScrubBytesPerSecond < 1<<10 {
		bad("log.scrub_bytes_per_second %d is less than 1024", c.Log.ScrubBytesPerSecond)
	}
	positive := map[string]time.Duration{
		"log.sequence_interval": c.Log.SequenceInterval, "log.ct_max_root_age": c.Log.CTMaxRootAge,
		"log.scrub_interval": c.Log.ScrubInterval,
		"ci.default_ttl":     c.CI.DefaultTTL, "ci.max_ttl": c.CI.MaxTTL,
		"limits.drain_timeout": c.Limits.DrainTimeout, "tuf.check_interval": c.TUF.CheckInterval,
	}
	for name, d := range positive {
		if d < time.Millisecond {
			bad("%s %v is not a time of 1ms or more", name, d)
		}
	}
	if c.CI.DefaultTTL > c.CI.MaxTTL {
		bad("ci.default_ttl %v is longer than ci.max_ttl %v", c.CI.DefaultTTL, c.CI.MaxTTL)
	}
	if c.CI.MaxTTL > 24*time.Hour {
		bad("ci.max_ttl %v is longer than 24h", c.CI.MaxTTL)
	}
	if c.Rekor.MaxBodyBytes < 1<<10 || c.Rekor.MaxBodyBytes > 128<<20 {
		bad("rekor.max_body_bytes %d is not between 1 KiB and 128 MiB", c.Rekor.MaxBodyBytes)
	}
	if c.Limits.MaxInFlight < 1 || c.Limits.MaxQueued < 0 || c.Limits.MinFreeBytes < 0 {
		bad("limits must not be negative, and max_in_flight at least 1")
	}
	own := map[string]bool{c.URL + "/oidc": true, c.URL + "/ci": true}
	seen := map[string]bool{}
	for i, iss := range c.Fulcio.Issuers {
		name := iss.URL + iss.Pattern
		switch {
		case (iss.URL == "") == (iss.Pattern == ""):
			bad("fulcio.issuers[%d] needs either url or pattern", i)
		case own[iss.URL]:
			bad("fulcio.issuers[%d]: %s is the instance's own and always trusted", i, iss.URL)
		case seen[name]:
			bad("fulcio.issuers[%d]: %s is named twice", i, name)
		case iss.Type == "":
			bad("fulcio.issuers[%d]: type is missing", i)
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

// validate refuses what belongs to another engine, and what would undo itself.
func (s Storage) validate(c *Config, bad func(format string, args ...any)) {
	switch s.Engine {
	case SQLite:
		if s.DSNFile != "" {
			bad("storage.dsn_file is for storage.engine postgres, not sqlite")
		}
		data, anchors, archive := c.Path(s.Dir), c.Path(s.AnchorDir), c.Path(s.ArchiveDir)
		below := data + string(filepath.Separator)
		if anchors == data || strings.HasPrefix(anchors, below) {
			bad("storage.anchor_dir %q is in storage.dir: a copy of the one that is put back would put the other back too", s.AnchorDir)
		}
		if archive != "" && (archive == data || strings.HasPrefix(archive, below)) {
			bad("storage.archive_dir %q is in storage.dir: what damages the one would damage the other", s.ArchiveDir)
		}
	case Postgres:
		if s.DSNFile == "" {
			bad("storage.dsn_file is missing: the file with the connection string of storage.engine postgres")
		}
		if s.Dir != "" {
			bad("storage.dir is for storage.engine sqlite, not postgres")
		}
		if s.ArchiveDir != "" {
			bad("storage.archive_dir is for storage.engine sqlite: a PostgreSQL server archives its own write-ahead log")
		}
		if c.AuditDir != "" {
			bad("audit_dir is for storage.engine sqlite: postgres keeps the record in the database")
		}
		if c.Quickstart {
			bad("quickstart is for storage.engine sqlite, not postgres")
		}
	default:
		bad("storage.engine %q is not known: sqlite or postgres", s.Engine)
	}
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
