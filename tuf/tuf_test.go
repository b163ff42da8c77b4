package tuf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	sigstoretuf "github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// keys are one key for each role.
type keys struct{ root, targets, snapshot, timestamp crypto.Signer }

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newKeys(t *testing.T) keys {
	return keys{newKey(t), newKey(t), newKey(t), newKey(t)}
}

func (k keys) config(now time.Time, files ...Target) Config {
	one := func(s crypto.Signer) Role { return Role{Signers: []crypto.Signer{s}, Threshold: 1} }
	return Config{Root: one(k.root), Targets: one(k.targets), Snapshot: one(k.snapshot), Timestamp: one(k.timestamp), Now: now, Files: files}
}

func (k keys) renewal() Renewal {
	return Renewal{Snapshot: []crypto.Signer{k.snapshot}, Timestamp: []crypto.Signer{k.timestamp}}
}

// material is the trust of an instance that has changed its keys once.
func material(t *testing.T, now time.Time) *TrustMaterial {
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	top, topKey, err := ca.GenerateRootCa()
	fatal(err)
	issuer, _, err := ca.GenerateFulcioIntermediate(top, topKey)
	fatal(err)
	tsaIssuer, tsaKey, err := ca.GenerateTSAIntermediate(top, topKey)
	fatal(err)
	leaf, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	stamper, err := ca.GenerateTSALeafCert(now, leaf, tsaIssuer, tsaKey)
	fatal(err)
	older, middle := now.AddDate(-1, 0, 0), now.Add(-time.Hour)
	const origin = "https://sigstore.example"
	log := func(url string, start, end time.Time) Log {
		return Log{PublicKey: newKey(t).Public(), URL: url, Start: start, End: end}
	}
	return &TrustMaterial{
		Fulcio: []Authority{
			{Chain: []*x509.Certificate{issuer, top}, URL: origin, Start: older, End: middle},
			{Chain: []*x509.Certificate{issuer, top}, URL: origin, Start: middle},
		},
		CTLogs: []Log{log(origin+"/ctlog", older, middle), log(origin+"/ctlog", middle, time.Time{})},
		Rekor:  []Log{log(origin, older, middle), log(origin, middle, time.Time{})},
		TSAs: []Authority{
			{Chain: []*x509.Certificate{stamper, tsaIssuer, top}, URL: origin + "/api/v1/timestamp", Start: older, End: middle},
			{Chain: []*x509.Certificate{stamper, tsaIssuer, top}, URL: origin + "/api/v1/timestamp", Start: middle},
		},
		OIDCIssuers: []string{origin + "/oidc"},
		Operator:    "sigstore.example",
	}
}

func create(t *testing.T, k keys, now time.Time) *Repository {
	t.Helper()
	targets, err := material(t, now).Targets(now)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Create(k.config(now, targets...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// site serves whatever repository it holds at the moment.
type site struct {
	*httptest.Server
	files map[string][]byte
}

func newSite(t *testing.T, r *Repository) *site {
	s := &site{files: r.Files()}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		data, ok := s.files[strings.TrimPrefix(req.URL.Path, "/tuf/")]
		if !ok {
			http.NotFound(w, req)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) mirror() string { return s.URL + "/tuf" }

// walk updates as clients do, with the cache in dir, and returns every target.
func walk(mirror string, pinned []byte, dir string, at time.Time) (map[string][]byte, error) {
	cfg, err := config.New(mirror, pinned)
	if err != nil {
		return nil, err
	}
	cfg.LocalMetadataDir, cfg.LocalTargetsDir = dir, filepath.Join(dir, "targets")
	if err := cfg.SetDefaultFetcherRetry(time.Millisecond, 1); err != nil {
		return nil, err
	}
	up, err := updater.New(cfg)
	if err != nil {
		return nil, err
	}
	up.UnsafeSetRefTime(at)
	if err := up.Refresh(); err != nil {
		return nil, err
	}
	got := map[string][]byte{}
	for name := range up.GetTopLevelTargets() {
		info, err := up.GetTargetInfo(name)
		if err != nil {
			return nil, err
		}
		if _, got[name], err = up.DownloadTarget(info, "", ""); err != nil {
			return nil, err
		}
	}
	return got, nil
}

func TestClientsWalkTheRepository(t *testing.T) {
	now := time.Now()
	r := create(t, newKeys(t), now)
	s := newSite(t, r)
	got, err := walk(s.mirror(), r.Root(), t.TempDir(), now)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(got))
	if want := r.TargetNames(); !slices.Equal(names, want) {
		t.Errorf("targets %v, want %v", names, want)
	}

	opts := &sigstoretuf.Options{Root: r.Root(), RepositoryBaseURL: s.mirror(), CachePath: t.TempDir()}
	trusted, err := root.FetchTrustedRootWithOptions(opts)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(trusted.RekorLogs()); n != 2 {
		t.Errorf("%d Rekor keys, want the old and the new", n)
	}
	if n := len(trusted.CTLogs()); n != 2 {
		t.Errorf("%d CT log keys, want the old and the new", n)
	}
	if a, b := len(trusted.FulcioCertificateAuthorities()), len(trusted.TimestampingAuthorities()); a != 2 || b != 2 {
		t.Errorf("%d certificate and %d timestamp authorities, want 2 of each", a, b)
	}
	signing, err := root.FetchSigningConfigWithOptions(opts)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		services []root.Service
		url      string
	}{
		"fulcio": {signing.FulcioCertificateAuthorityURLs(), "https://sigstore.example"},
		"rekor":  {signing.RekorLogURLs(), "https://sigstore.example"},
		"tsa":    {signing.TimestampAuthorityURLs(), "https://sigstore.example/api/v1/timestamp"},
		"oidc":   {signing.OIDCProviderURLs(), "https://sigstore.example/oidc"},
	} {
		// Rekor clients offer versions 1 and 2 and take the highest that is listed.
		got, err := root.SelectService(c.services, []uint32{1, 2}, now)
		if err != nil || got.URL != c.url || got.MajorAPIVersion != 1 || len(c.services) != 1 {
			t.Errorf("%s: %+v, %v; want %s once", what, got, err, c.url)
		}
	}
}

// TestLegacyTargets holds what cosign v2 and sigstore/sigstore look for.
func TestLegacyTargets(t *testing.T) {
	now := time.Now()
	targets, err := material(t, now).Targets(now)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	tsaLeaves := 0
	for _, target := range targets {
		if target.Custom == nil {
			continue
		}
		var custom struct {
			Sigstore struct{ Usage, Status, URI string }
		}
		if err := json.Unmarshal(target.Custom, &custom); err != nil {
			t.Fatal(err)
		}
		c := custom.Sigstore
		got[target.Name] = c.Usage + " " + c.Status
		if !strings.HasPrefix(c.URI, "https://sigstore.example") {
			t.Errorf("%s: uri %q", target.Name, c.URI)
		}
		if c.Usage == "TSA" && strings.Contains(target.Name, "leaf") {
			tsaLeaves++
		}
	}
	want := map[string]string{
		"fulcio_v1.crt.pem": "Fulcio Expired", "fulcio_intermediate_v1.crt.pem": "Fulcio Expired",
		"fulcio_v2.crt.pem": "Fulcio Active", "fulcio_intermediate_v2.crt.pem": "Fulcio Active",
		"rekor.pub": "Rekor Expired", "rekor_2.pub": "Rekor Active",
		"ctfe.pub": "CTFE Expired", "ctfe_2.pub": "CTFE Active",
		"tsa_leaf.crt.pem": "TSA Active", "tsa_intermediate_0.crt.pem": "TSA Active", "tsa_root.crt.pem": "TSA Active",
	}
	if !maps.Equal(got, want) {
		t.Errorf("legacy targets\n got %v\nwant %v", got, want)
	}
	if tsaLeaves != 1 {
		t.Errorf("%d TSA leaves: cosign v2 accepts exactly one", tsaLeaves)
	}
}

func TestGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/material.json")
	if err != nil && !*update {
		t.Fatal(err)
	}
	// Certificates and keys are stored, since new ones would differ each time.
	type stored struct {
		Now     time.Time
		Fulcio  [][]byte
		TSA     [][]byte
		Rekor   []byte
		CTLog   []byte
		Trusted json.RawMessage
		Signing json.RawMessage
	}
	var s stored
	if *update {
		m := material(t, time.Now())
		s.Now = time.Now().UTC().Truncate(time.Second)
		for _, c := range m.Fulcio[1].Chain {
			s.Fulcio = append(s.Fulcio, c.Raw)
		}
		for _, c := range m.TSAs[1].Chain {
			s.TSA = append(s.TSA, c.Raw)
		}
		if s.Rekor, err = x509.MarshalPKIXPublicKey(m.Rekor[1].PublicKey); err != nil {
			t.Fatal(err)
		}
		if s.CTLog, err = x509.MarshalPKIXPublicKey(m.CTLogs[1].PublicKey); err != nil {
			t.Fatal(err)
		}
	} else if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	chain := func(ders [][]byte) []*x509.Certificate {
		var out []*x509.Certificate
		for _, der := range ders {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
		return out
	}
	key := func(der []byte) crypto.PublicKey {
		k, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	const origin = "http://127.0.0.1:8080"
	m := &TrustMaterial{
		Fulcio:      []Authority{{Chain: chain(s.Fulcio), URL: origin, Start: s.Now}},
		CTLogs:      []Log{{PublicKey: key(s.CTLog), URL: origin + "/ctlog", Start: s.Now}},
		Rekor:       []Log{{PublicKey: key(s.Rekor), URL: origin, Start: s.Now}},
		TSAs:        []Authority{{Chain: chain(s.TSA), URL: origin + "/api/v1/timestamp", Start: s.Now}},
		OIDCIssuers: []string{origin + "/oidc"},
		Operator:    "127.0.0.1",
	}
	trusted, err := m.TrustedRoot()
	if err != nil {
		t.Fatal(err)
	}
	signing, err := m.SigningConfig()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		s.Trusted, s.Signing = trusted, signing
		if data, err = json.MarshalIndent(s, "", "  "); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile("testdata/material.json", append(data, '\n'), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	for _, c := range []struct {
		name      string
		got, want []byte
	}{{TrustedRootName, trusted, s.Trusted}, {SigningConfigName, signing, s.Signing}} {
		var got, want any
		if err := errors.Join(json.Unmarshal(c.got, &got), json.Unmarshal(c.want, &want)); err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if string(a) != string(b) {
			t.Errorf("%s changed:\n got %s\nwant %s", c.name, a, b)
		}
	}
}

func TestRenew(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	r := create(t, k, now)
	s := newSite(t, r)
	cache := t.TempDir()
	if _, err := walk(s.mirror(), r.Root(), cache, now); err != nil {
		t.Fatal(err)
	}
	versions := func(r *Repository) (snapshot, timestamp int64) {
		return r.snapshot.Signed.Version, r.timestamp.Signed.Version
	}
	for _, c := range []struct {
		after               time.Duration
		snapshot, timestamp int64
	}{
		{0, 1, 1},
		{3 * day, 1, 1},   // more than half of seven days remains
		{4 * day, 1, 2},   // less
		{7 * day, 1, 2},   // renewed a moment ago
		{16 * day, 2, 3},  // half of the snapshot's thirty days
		{400 * day, 3, 4}, // back after a year
	} {
		next, err := r.Renew(now.Add(c.after), k.renewal())
		if err != nil {
			t.Fatalf("after %s: %v", c.after, err)
		}
		if a, b := versions(next); a != c.snapshot || b != c.timestamp {
			t.Errorf("after %s: snapshot %d, timestamp %d; want %d and %d", c.after, a, b, c.snapshot, c.timestamp)
		}
		r, s.files = next, next.Files()
		if _, err := walk(s.mirror(), r.Root(), cache, now.Add(c.after)); err != nil {
			t.Errorf("after %s: %v", c.after, err)
		}
	}
	// The snapshot that the last timestamp named is still there for who asks.
	if _, ok := r.Files()["2.snapshot.json"]; !ok {
		t.Error("the snapshot before the last is gone at once")
	}
}

func TestRenewRefuses(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	r := create(t, k, now)
	stranger := newKeys(t)
	for _, c := range []struct {
		name    string
		at      time.Time
		renewal Renewal
		check   func(error) bool
	}{
		{"an earlier clock", now.Add(-10 * day), k.renewal(), func(err error) bool { return errors.Is(err, ErrClock) }},
		{"keys of another", now.Add(6 * day), stranger.renewal(), func(err error) bool { return err != nil }},
		{"no keys", now.Add(6 * day), Renewal{}, func(err error) bool { return err != nil }},
		{"root expired", now.Add(6 * 365 * day), k.renewal(), func(err error) bool {
			var expired *ExpiredError
			return errors.As(err, &expired)
		}},
		{"nonsensical fraction", now, Renewal{Fraction: 1.5}, func(err error) bool { return err != nil }},
	} {
		if got, err := r.Renew(c.at, c.renewal); !c.check(err) || got != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// A clock that was set by ten minutes is no reason to stop.
	if got, err := r.Renew(now.Add(-10*time.Minute), k.renewal()); err != nil || got != r {
		t.Errorf("ten minutes earlier: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"threshold 0":               func(c *Config) { c.Root.Threshold = 0 },
		"negative threshold":        func(c *Config) { c.Snapshot.Threshold = -1 },
		"threshold above the keys":  func(c *Config) { c.Targets.Threshold = 2 },
		"one key twice":             func(c *Config) { c.Root = Role{[]crypto.Signer{k.root, k.root}, 2} },
		"no key":                    func(c *Config) { c.Timestamp.Signers = nil },
		"nil key":                   func(c *Config) { c.Timestamp.Signers = []crypto.Signer{nil} },
		"another curve":             func(c *Config) { c.Root.Signers = []crypto.Signer{p384} },
		"a lifetime of a second":    func(c *Config) { c.Lifetimes.Timestamp = time.Second },
		"a target that climbs":      func(c *Config) { c.Files = []Target{{Name: "../../etc/passwd"}} },
		"a hidden target":           func(c *Config) { c.Files = []Target{{Name: ".ssh"}} },
		"a target without name":     func(c *Config) { c.Files = []Target{{}} },
		"a target twice":            func(c *Config) { c.Files = []Target{{Name: "a"}, {Name: "a"}} },
		"a target beyond the limit": func(c *Config) { c.Files = []Target{{Name: "a", Data: make([]byte, maxTarget+1)}} },
	} {
		c := k.config(now)
		change(&c)
		if _, err := Create(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestThreshold(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	c := k.config(now, Target{Name: "a", Data: []byte("a")})
	c.Root = Role{Signers: []crypto.Signer{newKey(t), newKey(t), newKey(t)}, Threshold: 2}
	r, err := Create(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := walk(newSite(t, r).mirror(), r.Root(), t.TempDir(), now); err != nil {
		t.Error(err)
	}
}

func TestTrustMaterialRefuses(t *testing.T) {
	now := time.Now()
	for name, change := range map[string]func(*TrustMaterial){
		"an empty chain":          func(m *TrustMaterial) { m.Fulcio[0].Chain = nil },
		"a chain without root":    func(m *TrustMaterial) { m.Fulcio[0].Chain = m.Fulcio[0].Chain[:1] },
		"a chain in wrong order":  func(m *TrustMaterial) { slices.Reverse(m.Fulcio[0].Chain) },
		"an end before the start": func(m *TrustMaterial) { m.Rekor[0].End = m.Rekor[0].Start.Add(-1) },
		"no start":                func(m *TrustMaterial) { m.CTLogs[0].Start = time.Time{} },
		"one log twice":           func(m *TrustMaterial) { m.Rekor[1].PublicKey = m.Rekor[0].PublicKey },
		"a URL without scheme":    func(m *TrustMaterial) { m.Rekor[1].URL = "sigstore.example" },
		"no log key":              func(m *TrustMaterial) { m.Rekor[1].PublicKey = nil },
	} {
		m := material(t, now)
		change(m)
		if _, err := m.Targets(now); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestParseRefuses changes each file in each way in which a repository carried
// in by hand could be wrong.
func TestParseRefuses(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	r := create(t, k, now)
	later, err := r.Renew(now.Add(20*day), k.renewal())
	if err != nil {
		t.Fatal(err)
	}
	for name := range r.files {
		missing := r.Files()
		delete(missing, name)
		if _, err := Parse(missing); err == nil {
			t.Errorf("without %s: accepted", name)
		}
		flipped := r.Files()
		data := slices.Clone(flipped[name])
		data[len(data)/2] ^= 1
		flipped[name] = data
		if _, err := Parse(flipped); err == nil {
			t.Errorf("one bit of %s flipped: accepted", name)
		}
	}
	mixed := r.Files()
	mixed["1.snapshot.json"] = later.files["2.snapshot.json"]
	if _, err := Parse(mixed); err == nil {
		t.Error("a snapshot of another time: accepted")
	}
	other := create(t, newKeys(t), now)
	swapped := r.Files()
	swapped["2.root.json"] = other.files[FirstRoot]
	if _, err := Parse(swapped); err == nil {
		t.Error("a root of another instance as the second: accepted")
	}
}

// TestClientsRefuse serves what an attacker without keys could.
func TestClientsRefuse(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	first := create(t, k, now)
	second, err := first.Renew(now.Add(20*day), k.renewal())
	if err != nil {
		t.Fatal(err)
	}
	at := now.Add(20 * day)
	var expired *metadata.ErrExpiredMetadata
	for _, c := range []struct {
		name  string
		serve func() map[string][]byte
		at    time.Time
		is    func(error) bool
	}{
		{"rolled back", first.Files, now, func(err error) bool { return err != nil }},
		{"frozen", second.Files, at.Add(30 * day), func(err error) bool { return errors.As(err, &expired) }},
		{"mixed", func() map[string][]byte {
			f := second.Files()
			f["2.snapshot.json"] = f["1.snapshot.json"]
			return f
		}, at, func(err error) bool { return err != nil }},
		{"of another", create(t, newKeys(t), now).Files, at, func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, second)
			cache := t.TempDir()
			if c.name != "mixed" {
				if _, err := walk(s.mirror(), first.Root(), cache, at); err != nil {
					t.Fatal(err)
				}
			}
			s.files = c.serve()
			if _, err := walk(s.mirror(), first.Root(), cache, c.at); !c.is(err) {
				t.Errorf("accepted, or refused for another reason: %v", err)
			}
		})
	}
}

func TestSaveAndLoad(t *testing.T) {
	now := time.Now()
	k := newKeys(t)
	r := create(t, k, now)
	dir := filepath.Join(t.TempDir(), "tuf")
	if _, err := Load(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	if err := Save(dir, r); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := range 5 {
		// An interrupted renewal leaves a snapshot behind that nothing names.
		orphan := filepath.Join(dir, versioned(int64(i+2), metadata.SNAPSHOT))
		if err := os.WriteFile(orphan, []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r, err = r.Renew(now.Add(time.Duration(i+1)*20*day), k.renewal()); err != nil {
			t.Fatal(err)
		}
		if err := Save(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	back, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if back.RootChecksum() != r.RootChecksum() || !slices.Equal(back.Expiries(), r.Expiries()) {
		t.Errorf("loaded %v, saved %v", back.Expiries(), r.Expiries())
	}
	snapshots, err := filepath.Glob(filepath.Join(dir, "*.snapshot.json"))
	if err != nil || len(snapshots) != 2 {
		t.Errorf("snapshots left: %v, %v", snapshots, err)
	}
	if err := Save(dir, create(t, k, now)); err == nil {
		t.Error("another repository saved over this one")
	}
	old, err := Parse(r.Files())
	if err != nil {
		t.Fatal(err)
	}
	older := *old
	copied := *old.timestamp
	copied.Signed.Version--
	older.timestamp = &copied
	if err := Save(dir, &older); err == nil {
		t.Error("an older timestamp saved over a newer one")
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "targets", "x")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a symbolic link was followed")
	}
}

func TestExpiries(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	r := create(t, newKeys(t), now)
	want := []Expiry{
		{"timestamp", 1, now.Add(7 * day)},
		{"snapshot", 1, now.Add(30 * day)},
		{"root", 1, now.Add(5 * 365 * day)},
		{"targets", 1, now.Add(5 * 365 * day)},
	}
	if got := r.Expiries(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func FuzzParse(f *testing.F) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	r, err := Create(keys{k, k, k, k}.config(time.Now(), Target{Name: "a", Data: []byte("a")}))
	if err != nil {
		f.Fatal(err)
	}
	for name, data := range r.Files() {
		f.Add(name, data)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		files := r.Files()
		want, known := files[name]
		files[name] = data
		got, err := Parse(files)
		if err == nil && known && string(data) != string(want) && got.Files()[name] == nil {
			t.Errorf("%s was changed and dropped", name)
		}
	})
}
