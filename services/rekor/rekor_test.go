package rekor

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/rekor/pkg/client"
	"github.com/sigstore/rekor/pkg/generated/client/entries"
	"github.com/sigstore/rekor/pkg/generated/client/index"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/sigbox/sigbox/internal/audit"
)

// Every way to find an entry finds it as soon as it is acknowledged.
func TestReadYourWrite(t *testing.T) {
	i := start(t, newConfig(t))
	for _, c := range []struct {
		name  string
		entry func(identity, []byte) models.ProposedEntry
		// found lists digests, besides the signer, that find the entry.
		found func(identity, []byte) []string
		kept  func([]byte) []byte // what is kept as attestation
	}{
		{
			name:  "hashedrekord",
			entry: func(id identity, a []byte) models.ProposedEntry { return id.hashedrekord(t, a) },
		},
		{
			name:  "dsse",
			entry: func(id identity, a []byte) models.ProposedEntry { return id.attestation(t, "dsse", "0.0.1", a) },
			found: func(id identity, a []byte) []string { return []string{sha256Hex(statement(a))} },
		},
		{
			name:  "intoto",
			entry: func(id identity, a []byte) models.ProposedEntry { return id.attestation(t, "intoto", "0.0.2", a) },
			found: func(id identity, a []byte) []string { return []string{sha256Hex(statement(a))} },
			kept:  statement,
		},
		{
			name:  "cose",
			entry: func(id identity, a []byte) models.ProposedEntry { return id.cose(t, statement(a)) },
			found: func(id identity, a []byte) []string { return []string{sha256Hex(statement(a))} },
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := i
			signer := newIdentity(t, c.name+"@example.com")
			artifact := []byte("artifact of " + c.name)
			proposed := c.entry(signer, artifact)
			a := i.post(createPath, proposed)
			if a.code != http.StatusCreated {
				t.Fatalf("create: %d %s", a.code, a.body)
			}
			id, logged := i.entry(a.body)
			if got := a.header.Get("Location"); got != createPath+"/"+id {
				t.Errorf("Location %q", got)
			}

			same := func(how string, got answer) models.LogEntryAnon {
				t.Helper()
				if got.code != http.StatusOK {
					t.Fatalf("%s: %d %s", how, got.code, got.body)
				}
				gotID, e := i.entry(got.body)
				if gotID != id || *e.LogIndex != *logged.LogIndex {
					t.Errorf("%s: entry %s at %d, want %s at %d", how, gotID, *e.LogIndex, id, *logged.LogIndex)
				}
				return e
			}
			one := func(how string, got answer) models.LogEntryAnon {
				t.Helper()
				var all []json.RawMessage
				if err := json.Unmarshal(got.body, &all); err != nil || len(all) != 1 {
					t.Fatalf("%s: %s", how, got.body)
				}
				got.body = all[0]
				return same(how, got)
			}
			e := same("by id", i.get(createPath+"/"+id))
			same("by leaf hash", i.get(createPath+"/"+id[16:]))
			same("by index", i.get(fmt.Sprintf("%s?logIndex=%d", createPath, *logged.LogIndex)))
			one("retrieve by id", i.post(createPath+"/retrieve", map[string]any{"entryUUIDs": []string{id}}))
			one("retrieve by index", i.post(createPath+"/retrieve", map[string]any{"logIndexes": []int64{*logged.LogIndex}}))
			one("retrieve by entry", i.post(createPath+"/retrieve", map[string]any{"entries": []any{proposed}}))
			if c.kept != nil {
				if e.Attestation == nil || !bytes.Equal(e.Attestation.Data, c.kept(artifact)) {
					t.Errorf("attestation %v", e.Attestation)
				}
			}

			queries := []map[string]any{
				{"hash": "sha256:" + sha256Hex(artifact)},
				{"hash": sha256Hex(artifact)},
				{"hash": strings.ToUpper(sha256Hex(artifact))},
				{"email": signer.email},
				{"email": strings.ToUpper(signer.email)},
				{"subject": signer.uri},
				{"subject": strings.ToLower(signer.uri)},
				{"publicKey": map[string]any{"format": "x509", "content": signer.certPEM}},
				{
					"operator": "and", "hash": sha256Hex(artifact), "email": signer.email,
					"publicKey": map[string]any{"format": "x509", "content": signer.certPEM},
				},
				{"operator": "or", "hash": sha256Hex([]byte("another")), "email": signer.email},
			}
			if c.found != nil {
				for _, digest := range c.found(signer, artifact) {
					queries = append(queries, map[string]any{"hash": digest})
				}
			}
			for _, q := range queries {
				if got := i.search(q); !slices.Equal(got, []string{id}) {
					t.Errorf("search %v: %v, want %s", q, got, id)
				}
			}
			for _, q := range []map[string]any{
				{},
				{"hash": sha256Hex([]byte("another"))},
				{"operator": "and", "hash": sha256Hex([]byte("another")), "email": signer.email},
			} {
				if got := i.search(q); len(got) != 0 {
					t.Errorf("search %v: %v, want nothing", q, got)
				}
			}

			events := i.audited()
			last := events[len(events)-1]
			if last.Type != audit.Appended || last.Service != "rekor" || last.Fields["entry"] != id || last.Fields["kind"] != c.name ||
				last.Fields["log_index"] != *logged.LogIndex || !slices.Contains(last.Fields["subjects"].([]string), signer.email) {
				t.Errorf("audit event %+v", last)
			}
		})
	}
}

func TestLog(t *testing.T) {
	i := start(t, newConfig(t))
	signer := newIdentity(t, "a@example.com")
	for n := range 3 {
		i.create(signer.hashedrekord(t, fmt.Append(nil, "artifact", n)))
	}
	key := i.get("/api/v1/log/publicKey")
	public, err := cryptoutils.UnmarshalPEMToPublicKey(key.body)
	if err != nil {
		t.Fatal(err)
	}
	if err := cryptoutils.EqualKeys(public, i.cfg.Signer.Public()); err != nil {
		t.Error(err)
	}
	if id, err := keyID(public); err != nil || id != i.LogID() {
		t.Errorf("log id %q, error %v; the service says %q", id, err, i.LogID())
	}

	var info models.LogInfo
	if err := json.Unmarshal(i.get("/api/v1/log").body, &info); err != nil {
		t.Fatal(err)
	}
	var head util.SignedCheckpoint
	if err := head.UnmarshalText([]byte(*info.SignedTreeHead)); err != nil {
		t.Fatal(err)
	}
	verifier, err := signature.LoadVerifier(public, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !head.Verify(verifier) {
		t.Error("the checkpoint does not verify")
	}
	if want := fmt.Sprintf("%s - %d", i.cfg.Hostname, i.cfg.TreeID); head.Origin != want || head.Size != 3 {
		t.Errorf("checkpoint of %q at size %d, want %q at 3", head.Origin, head.Size, want)
	}
	if head.Signatures[0].Name != i.cfg.Hostname {
		t.Errorf("signed as %q", head.Signatures[0].Name)
	}

	var proof models.ConsistencyProof
	a := i.get("/api/v1/log/proof?firstSize=1&lastSize=3")
	if err := json.Unmarshal(a.body, &proof); err != nil || *proof.RootHash != *info.RootHash || len(proof.Hashes) != 2 {
		t.Errorf("consistency proof: %d %s (%v)", a.code, a.body, err)
	}
	if got := i.get("/api/v1/log").header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	for path, want := range map[string]int{
		"/api/v1/log/proof?firstSize=3&lastSize=1":         http.StatusBadRequest,
		"/api/v1/log/proof?lastSize=nonsense":              http.StatusUnprocessableEntity,
		createPath + "?logIndex=3":                         http.StatusNotFound,
		createPath + "?logIndex=-1":                        http.StatusUnprocessableEntity,
		createPath + "/" + strings.Repeat("0", 64):         http.StatusNotFound,
		createPath + "/" + strings.Repeat("zz", 32):        http.StatusUnprocessableEntity,
		createPath + "/short":                              http.StatusUnprocessableEntity,
		"/api/v1/log/unknown":                              http.StatusNotFound,
		"/api/v1/log/publicKey?treeID=1":                   http.StatusBadRequest,
		fmt.Sprintf("%s/%016x%064x", createPath, 12345, 1): http.StatusNotFound,
	} {
		if a := i.get(path); a.code != want {
			t.Errorf("GET %s: %d %s, want %d", path, a.code, a.body, want)
		}
	}
}

// Stock clients do not say how large their bodies are, and read errors by type.
func TestUpstreamClient(t *testing.T) {
	i := start(t, newConfig(t))
	c, err := client.GetRekorClient(i.url)
	if err != nil {
		t.Fatal(err)
	}
	signer := newIdentity(t, "a@example.com")
	create := entries.NewCreateLogEntryParams().WithProposedEntry(signer.attestation(t, "dsse", "0.0.1", []byte("artifact")))
	created, err := c.Entries.CreateLogEntry(create)
	if err != nil {
		t.Fatal(err)
	}
	var conflict *entries.CreateLogEntryConflict
	if _, err := c.Entries.CreateLogEntry(create); !errors.As(err, &conflict) || conflict.Location != created.Location {
		t.Errorf("creating it again: %v", err)
	}
	found, err := c.Index.SearchIndex(index.NewSearchIndexParams().WithQuery(&models.SearchIndex{Hash: sha256Hex([]byte("artifact"))}))
	if err != nil || !slices.Equal(found.Payload, []string{created.ETag}) {
		t.Errorf("search: %v, error %v; want %s", found, err, created.ETag)
	}
	var refused *index.SearchIndexDefault
	if _, err := c.Index.SearchIndex(index.NewSearchIndexParams().WithQuery(&models.SearchIndex{Hash: "short"})); !errors.As(err, &refused) || refused.Code() != http.StatusUnprocessableEntity {
		t.Errorf("search for nonsense: %v", err)
	}
	got, err := c.Entries.GetLogEntryByUUID(entries.NewGetLogEntryByUUIDParams().WithEntryUUID(created.ETag))
	if err != nil || len(got.Payload) != 1 {
		t.Errorf("get: %v, error %v", got, err)
	}
	if key, err := c.Pubkey.GetPublicKey(nil); err != nil || !strings.HasPrefix(key.Payload, "-----BEGIN PUBLIC KEY-----") {
		t.Errorf("public key: %v, error %v", key, err)
	}
}

// An entry that is there already is found too, even where the one who brought
// it first never came to index it.
func TestDuplicate(t *testing.T) {
	cfg := newConfig(t)
	i := start(t, cfg)
	signer := newIdentity(t, "a@example.com")
	artifact := []byte("artifact")
	entry := signer.attestation(t, "intoto", "0.0.2", artifact)
	id, _ := i.create(entry)
	i.stop()

	cfg.Dir = t.TempDir() // an index that has never heard of it
	if err := Create(t.Context(), cfg.Dir); err != nil {
		t.Fatal(err)
	}
	i = start(t, cfg)
	if got := i.search(map[string]any{"hash": sha256Hex(artifact)}); len(got) != 0 {
		t.Fatalf("found %v in a new index", got)
	}
	for range 2 {
		a := i.post(createPath, entry)
		if a.code != http.StatusConflict {
			t.Fatalf("create again: %d %s", a.code, a.body)
		}
		if got := path.Base(a.header.Get("Location")); got != id {
			t.Errorf("Location names %q, want %q", got, id)
		}
		_, e := i.entry(i.get(createPath + "/" + id).body)
		if e.Attestation == nil || !bytes.Equal(e.Attestation.Data, statement(artifact)) {
			t.Errorf("attestation %v", e.Attestation)
		}
		if got := i.search(map[string]any{"hash": sha256Hex(artifact)}); !slices.Equal(got, []string{id}) {
			t.Errorf("found %v, want %s", got, id)
		}
	}
	for _, e := range i.audited() {
		if e.Fields["entry"] != id || e.Fields["duplicate"] != true {
			t.Errorf("audit event %+v", e)
		}
	}
}

func TestConcurrentDuplicates(t *testing.T) {
	i := start(t, newConfig(t))
	signer := newIdentity(t, "a@example.com")
	artifact := []byte("artifact")
	entry := signer.hashedrekord(t, artifact)
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for range 12 {
		wg.Go(func() {
			a := i.post(createPath, entry)
			mu.Lock()
			codes[a.code]++
			mu.Unlock()
			if ids := i.search(map[string]any{"hash": sha256Hex(artifact)}); len(ids) != 1 {
				t.Errorf("after %d: found %v", a.code, ids)
			} else if got := i.get(createPath + "/" + ids[0]); got.code != http.StatusOK {
				t.Errorf("after %d: reading it: %d %s", a.code, got.code, got.body)
			}
		})
	}
	wg.Wait()
	if codes[http.StatusCreated] != 1 || codes[http.StatusConflict] != 11 {
		t.Errorf("answers %v, want one 201 and eleven 409", codes)
	}
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	log := createLog(t, dir)
	cfg := configFor(t, log)
	i := start(t, cfg)
	signer := newIdentity(t, "a@example.com")
	artifact := []byte("artifact")
	id, logged := i.create(signer.attestation(t, "intoto", "0.0.2", artifact))
	i.stop()
	log.stop()

	log = reopenLog(t, dir, log.tree)
	cfg.TrillianAddress, cfg.TrillianPort = log.address, log.port
	i = start(t, cfg)
	_, e := i.entry(i.get(createPath + "/" + id).body)
	if *e.LogIndex != *logged.LogIndex || *e.IntegratedTime != *logged.IntegratedTime {
		t.Errorf("entry %+v, was %+v", e, logged)
	}
	if e.Attestation == nil || !bytes.Equal(e.Attestation.Data, statement(artifact)) {
		t.Errorf("attestation %v", e.Attestation)
	}
	if got := i.search(map[string]any{"email": signer.email}); !slices.Equal(got, []string{id}) {
		t.Errorf("found %v, want %s", got, id)
	}
	i.create(signer.hashedrekord(t, []byte("another")))
}

func TestLargeAttestationIsLoggedAndNotKept(t *testing.T) {
	i := start(t, newConfig(t))
	signer := newIdentity(t, "a@example.com")
	large := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v0.1","subject":[],"predicate":%q}`, strings.Repeat("x", maxAttestationBytes))
	id, _ := i.create(signer.cose(t, large))
	if _, e := i.entry(i.get(createPath + "/" + id).body); e.Attestation != nil {
		t.Errorf("kept %d bytes", len(e.Attestation.Data))
	}
}

// What cannot be indexed is not acknowledged, and ends the service.
func TestIndexFailureWithholdsTheAnswer(t *testing.T) {
	cfg := newConfig(t)
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ran := make(chan error, 1)
	go func() { ran <- s.Run(t.Context()) }()
	<-s.Ready()
	breakIndex(t, cfg.Dir)

	signer := newIdentity(t, "a@example.com")
	for _, want := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable} {
		if code, body := direct(t, s, signer.hashedrekord(t, []byte("artifact"))); code != want {
			t.Errorf("create: %d %s, want %d", code, body, want)
		}
	}
	select {
	case err := <-ran:
		if err == nil {
			t.Error("Run returned no error")
		}
	case <-time.After(10 * time.Second):
		t.Error("Run goes on without an index")
	}
}

func TestAuditFailureWithholdsTheAnswer(t *testing.T) {
	cfg := newConfig(t)
	full := errors.New("no space left on device")
	var mu sync.Mutex
	cfg.Audit = func(context.Context, audit.Event) error {
		mu.Lock()
		defer mu.Unlock()
		return full
	}
	i := start(t, cfg)
	entry := newIdentity(t, "a@example.com").hashedrekord(t, []byte("artifact"))
	for range 2 { // the second time it is a duplicate
		if a := i.post(createPath, entry); a.code != http.StatusInternalServerError {
			t.Errorf("create: %d %s", a.code, a.body)
		}
	}
	mu.Lock()
	full = nil
	mu.Unlock()
	if a := i.post(createPath, entry); a.code != http.StatusConflict {
		t.Errorf("create when there is space again: %d %s", a.code, a.body)
	}
	if events := i.audited(); len(events) != 1 {
		t.Errorf("audited %v", events)
	}
}

func TestBlockedAuditWithholdsTheAnswer(t *testing.T) {
	cfg := newConfig(t)
	cfg.Audit = func(ctx context.Context, _ audit.Event) error {
		<-ctx.Done()
		return ctx.Err()
	}
	i := start(t, cfg)
	i.timeout = 300 * time.Millisecond
	if a := i.post(createPath, newIdentity(t, "a@example.com").hashedrekord(t, []byte("artifact"))); a.code < 500 {
		t.Errorf("create: %d %s", a.code, a.body)
	}
}

func TestPanicIsContained(t *testing.T) {
	cfg := newConfig(t)
	panics := true
	cfg.Audit = func(context.Context, audit.Event) error {
		if panics {
			panic("what upstream's parsers may do")
		}
		return nil
	}
	i := start(t, cfg)
	signer := newIdentity(t, "a@example.com")
	if a := i.post(createPath, signer.hashedrekord(t, []byte("one"))); a.code != http.StatusInternalServerError {
		t.Errorf("create: %d %s", a.code, a.body)
	}
	panics = false
	i.create(signer.hashedrekord(t, []byte("two")))
}

func TestOneServicePerProcess(t *testing.T) {
	cfg := newConfig(t)
	i := start(t, cfg)
	other := cfg
	other.Dir = t.TempDir()
	if err := Create(t.Context(), other.Dir); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), other); err == nil || !strings.Contains(err.Error(), "has a log already") {
		t.Fatalf("a second service: %v", err)
	}
	// The first one is none the worse for it.
	i.create(newIdentity(t, "a@example.com").hashedrekord(t, []byte("artifact")))
	i.stop()
	s, err := New(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestNewRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := newConfig(t)
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"no tree", func(c *Config) { c.TreeID = 0 }, "tree id"},
		{"no signer", func(c *Config) { c.Signer = nil }, "no signer"},
		{"a P-384 key", func(c *Config) { c.Signer = p384 }, "P-256"},
		{"an Ed25519 key", func(c *Config) { c.Signer = ed }, "P-256"},
		{"no hostname", func(c *Config) { c.Hostname = "" }, "hostname"},
		{"no trillian", func(c *Config) { c.TrillianAddress = "" }, "trillian"},
		{"no folder", func(c *Config) { c.Dir = "" }, "folder"},
		{"a folder that init did not make", func(c *Config) { c.Dir = t.TempDir() }, "no such file"},
		{"no audit", func(c *Config) { c.Audit = nil }, "audit"},
		{"no logger", func(c *Config) { c.Logger = nil }, "logger"},
		{"a negative limit", func(c *Config) { c.MaxBodyBytes = -1 }, "limit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := good
			c.change(&cfg)
			s, err := New(t.Context(), cfg)
			if err == nil {
				t.Fatal(errors.Join(errors.New("made a service"), s.Close()))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q, want it to say %q", err, c.want)
			}
		})
	}
	// None of these keeps the process from having a service.
	s, err := New(t.Context(), good)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// What upstream panics about while it is set up comes out as an error.
func TestUpstreamPanicIsAnError(t *testing.T) {
	cfg := newConfig(t)
	cfg.TreeID = 0 // New refuses this; upstream would ask Trillian for a new tree
	cfg.TrillianAddress, cfg.TrillianPort = "unix://"+t.TempDir()+"/nobody.sock", 1
	if err := configureUpstream(cfg, nil); err == nil || !strings.Contains(err.Error(), "tree") {
		t.Errorf("error %v, want one about the tree", err)
	}
}

func TestNotReadyWithoutTrillian(t *testing.T) {
	cfg := newConfig(t)
	cfg.TrillianAddress, cfg.TrillianPort = "unix://"+t.TempDir()+"/nobody.sock", 1
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	select {
	case <-s.Ready():
		t.Error("ready without a log")
	default:
	}
}
