package rekor

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/sigstore/rekor/pkg/generated/models"
	gocose "github.com/veraison/go-cose"
	_ "modernc.org/sqlite" // to break the index from outside
)

// direct asks the handler without a connection.
func direct(t testing.TB, s *Service, entry models.ProposedEntry) (code int, body string) {
	t.Helper()
	raw, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, createPath, bytes.NewReader(raw))
	req.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

// breakIndex takes the index away under a running service.
func breakIndex(t testing.TB, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, indexFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "DROP TABLE entry_key"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// proposal of any shape.
func raw(kind, version string, spec any) map[string]any {
	return map[string]any{"kind": kind, "apiVersion": version, "spec": spec}
}

// spec is the entry as a tree that a test can change.
func spec(t testing.TB, entry models.ProposedEntry) map[string]any {
	t.Helper()
	b, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m["spec"].(map[string]any)
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// Bodies that are no entry get 4xx, cost little, and leave the service as it was.
func TestHostileEntries(t *testing.T) {
	i := start(t, newConfig(t))
	signer := newIdentity(t, "a@example.com")
	key := b64(signer.certPEM)

	wrongSignature := spec(t, signer.hashedrekord(t, []byte("artifact")))
	wrongSignature["data"] = map[string]any{"hash": map[string]any{"algorithm": "sha256", "value": sha256Hex([]byte("other"))}}

	badPayload := signer.attestation(t, "intoto", "0.0.2", []byte("artifact"))
	noType := spec(t, badPayload)
	delete(noType["content"].(map[string]any)["envelope"].(map[string]any), "payloadType")
	noSignatures := spec(t, badPayload)
	noSignatures["content"].(map[string]any)["envelope"].(map[string]any)["signatures"] = []any{}
	nilSignature := spec(t, badPayload)
	nilSignature["content"].(map[string]any)["envelope"].(map[string]any)["signatures"] = []any{nil}
	noKey := spec(t, badPayload)
	delete(noKey["content"].(map[string]any)["envelope"].(map[string]any)["signatures"].([]any)[0].(map[string]any), "publicKey")
	noPayload := spec(t, badPayload)
	delete(noPayload["content"].(map[string]any)["envelope"].(map[string]any), "payload")

	pgpKey, bomb := yamlBomb(t)

	cases := []struct {
		name string
		body any
		want int // 0: any 4xx
	}{
		{"empty body", []byte(""), 0},
		{"not JSON", []byte("hello"), http.StatusBadRequest},
		{"truncated JSON", []byte(`{"kind":"hashedrekord","spec":{`), http.StatusBadRequest},
		{"an array", []byte(`[]`), http.StatusBadRequest},
		{"null", []byte(`null`), 0},
		{"wrong type", []byte(`{"kind":7}`), http.StatusBadRequest},
		{"no kind", []byte(`{}`), 0},
		{"deep nesting", []byte(`{"kind":"hashedrekord","apiVersion":"0.0.1","spec":` + strings.Repeat("[", 100_000)), http.StatusBadRequest},
		{"unknown kind", raw("nonsense", "0.0.1", map[string]any{}), 0},
		{"base kind", raw("ProposedEntry", "0.0.1", map[string]any{}), 0},
		{"unknown version", raw("hashedrekord", "9.9.9", map[string]any{}), http.StatusBadRequest},
		{"no version", []byte(`{"kind":"hashedrekord","spec":{}}`), 0},
		{"no spec", []byte(`{"kind":"hashedrekord","apiVersion":"0.0.1"}`), 0},
		{"hashedrekord with a wrong signature", raw("hashedrekord", "0.0.1", wrongSignature), http.StatusBadRequest},
		{"empty hashedrekord", raw("hashedrekord", "0.0.1", map[string]any{}), 0},
		{"empty dsse", raw("dsse", "0.0.1", map[string]any{}), 0},
		{"dsse without envelope", raw("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"verifiers": []string{key}}}), 0},
		{"dsse without signatures", raw("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"verifiers": []string{key}, "envelope": `{"payload":"","payloadType":"x","signatures":[]}`}}), 0},
		{"dsse in its canonical form", raw("dsse", "0.0.1", map[string]any{
			"envelopeHash": map[string]any{"algorithm": "sha256", "value": sha256Hex(nil)},
			"payloadHash":  map[string]any{"algorithm": "sha256", "value": sha256Hex(nil)},
			"signatures":   []any{map[string]any{"signature": b64([]byte("x")), "verifier": key}},
		}), 0},
		{"malformed in-toto: no payload type", raw("intoto", "0.0.2", noType), 0},
		{"malformed in-toto: no signatures", raw("intoto", "0.0.2", noSignatures), 0},
		{"malformed in-toto: a null signature", raw("intoto", "0.0.2", nilSignature), 0},
		{"malformed in-toto: no public key", raw("intoto", "0.0.2", noKey), 0},
		{"malformed in-toto: no payload", raw("intoto", "0.0.2", noPayload), 0},
		{"malformed in-toto: no content", raw("intoto", "0.0.2", map[string]any{}), 0},
		{"malformed in-toto 0.0.1: no public key", raw("intoto", "0.0.1", map[string]any{"content": map[string]any{"envelope": "{}"}}), 0},
		{"malformed in-toto 0.0.1: no envelope", raw("intoto", "0.0.1", map[string]any{"publicKey": key, "content": map[string]any{}}), 0},
		{"empty COSE", raw("cose", "0.0.1", map[string]any{"publicKey": key, "data": map[string]any{}}), 0},
		{"empty COSE with a known hash", raw("cose", "0.0.1", map[string]any{"publicKey": key, "message": "", "data": map[string]any{
			"envelopeHash": map[string]any{"algorithm": "sha256", "value": sha256Hex(nil)},
		}}), 0},
		{"COSE without data", raw("cose", "0.0.1", map[string]any{"publicKey": key, "message": b64(signer.coseMessage(t, []byte("x")))}), 0},
		{"COSE without payload", raw("cose", "0.0.1", map[string]any{"publicKey": key, "data": map[string]any{"aad": b64([]byte("aad"))}, "message": b64(detached(t, signer.coseMessage(t, []byte("x"))))}), 0},
		{"COSE that is not CBOR", raw("cose", "0.0.1", map[string]any{"publicKey": key, "message": b64([]byte("x")), "data": map[string]any{}}), 0},
		{"apk bomb", raw("alpine", "0.0.1", map[string]any{"package": map[string]any{"content": b64(apkBomb(t))}, "publicKey": map[string]any{"content": key}}), http.StatusBadRequest},
		{"apk with a giant header", raw("alpine", "0.0.1", map[string]any{"package": map[string]any{"content": b64(giantAPK(t))}, "publicKey": map[string]any{"content": key}}), http.StatusBadRequest},
		{"jar bomb", raw("jar", "0.0.1", map[string]any{"archive": map[string]any{"content": b64(jarBomb(t))}}), http.StatusBadRequest},
		{"rpm with a giant header", raw("rpm", "0.0.1", map[string]any{"package": map[string]any{"content": b64(giantRPM())}, "publicKey": map[string]any{"content": key}}), http.StatusBadRequest},
		{"helm of nonsense", raw("helm", "0.0.1", map[string]any{"publicKey": map[string]any{"content": key}, "chart": map[string]any{"provenance": map[string]any{"content": b64([]byte("x"))}}}), 0},
		{"helm with a YAML bomb", raw("helm", "0.0.1", map[string]any{"publicKey": map[string]any{"content": b64(pgpKey)}, "chart": map[string]any{"provenance": map[string]any{"content": b64(bomb)}}}), http.StatusBadRequest},
		{"tuf of nonsense", raw("tuf", "0.0.1", map[string]any{"metadata": map[string]any{"content": map[string]any{}}, "root": map[string]any{"content": map[string]any{}}}), 0},
		{"rfc3161 of nonsense", raw("rfc3161", "0.0.1", map[string]any{"tsr": map[string]any{"content": b64([]byte("x"))}}), 0},
		{"rekord of nonsense", raw("rekord", "0.0.1", map[string]any{"data": map[string]any{"content": b64([]byte("x"))}, "signature": map[string]any{"format": "pgp", "content": b64([]byte("x")), "publicKey": map[string]any{"content": key}}}), 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, how := range []struct {
				path string
				body any
			}{{createPath, c.body}, {createPath + "/retrieve", map[string]any{"entries": []any{asJSON(c.body)}}}} {
				if how.path != createPath {
					if _, ok := c.body.([]byte); ok {
						continue // no JSON to put in a list
					}
				}
				before := allocated()
				a := i.post(how.path, how.body)
				t.Logf("%d %.160s", a.code, a.body)
				if grown := allocated() - before; grown > 256<<20 {
					t.Errorf("POST %s: allocated %d MiB", how.path, grown>>20)
				}
				if how.path == createPath && (a.code < 400 || a.code >= 500 || c.want != 0 && a.code != c.want) {
					t.Errorf("POST %s: %d %.200s, want %d", how.path, a.code, a.body, c.want)
				}
				if a.code >= 500 {
					t.Errorf("POST %s: %d %.200s", how.path, a.code, a.body)
				}
			}
		})
	}
	i.create(signer.hashedrekord(t, []byte("still there")))
}

func asJSON(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}

// allocated counts every byte ever allocated, garbage too.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func gz(t testing.TB, write func(io.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	write(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// apkBomb is a package whose control part unpacks to half a gigabyte.
func apkBomb(t testing.TB) []byte {
	sig := gz(t, func(w io.Writer) { tarFile(t, w, ".SIGN.RSA.key", []byte("sig")) })
	zeros := make([]byte, 1<<20)
	return append(sig, gz(t, func(w io.Writer) {
		for range 1 << 9 {
			if _, err := w.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
	})...)
}

// giantAPK claims a signature of four gigabytes.
func giantAPK(t testing.TB) []byte {
	return gz(t, func(w io.Writer) {
		if err := tar.NewWriter(w).WriteHeader(&tar.Header{Name: ".SIGN.RSA.key", Size: 4 << 30, Format: tar.FormatGNU}); err != nil {
			t.Fatal(err)
		}
	})
}

func tarFile(t testing.TB, w io.Writer, name string, content []byte) {
	t.Helper()
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := tw.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := tw.Flush(); err != nil {
		t.Fatal(err)
	}
}

// jarBomb is an archive whose manifest unpacks to half a gigabyte.
func jarBomb(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	w, err := zw.Create("META-INF/MANIFEST.MF")
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range 1 << 9 {
		if _, err := w.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// giantRPM claims a signature header of four gigabytes.
func giantRPM() []byte {
	lead := make([]byte, 96)
	copy(lead, []byte{0xed, 0xab, 0xee, 0xdb, 3, 0})
	lead[79] = 5 // a header with signatures follows
	header := []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0, 0x0f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0}
	return append(lead, header...)
}

// yamlBomb is a signed provenance whose list of files unfolds to 9^9 words, and
// the key that signed it.
func yamlBomb(t testing.TB) (key, provenance []byte) {
	t.Helper()
	entity, err := openpgp.NewEntity("a", "", "a@example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	var k bytes.Buffer
	armored, err := armor.Encode(&k, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(entity.Serialize(armored), armored.Close()); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, entity.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "name: chart\n\n...\na: &a [x,x,x,x,x,x,x,x,x]\n")
	for c := 'b'; c < 'j'; c++ {
		fmt.Fprintf(w, "%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	fmt.Fprint(w, "files: *i\n")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return k.Bytes(), b.Bytes()
}

// detached takes the payload out of a COSE message.
func detached(t testing.TB, message []byte) []byte {
	t.Helper()
	m := gocose.NewSign1Message()
	if err := m.UnmarshalCBOR(message); err != nil {
		t.Fatal(err)
	}
	m.Payload = nil
	out, err := m.MarshalCBOR()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// No entry makes the server connect to where it says (CVE-2026-24117).
func TestNothingIsFetched(t *testing.T) {
	i := start(t, newConfig(t))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled := make(chan string, 64)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			dialled <- conn.RemoteAddr().String()
			conn.Close()
		}
	}()
	u := (&url.URL{Scheme: "http", Host: listener.Addr().String(), Path: "/x"}).String()
	at := func() map[string]any { return map[string]any{"url": u} }
	signer := newIdentity(t, "a@example.com")
	hashed := spec(t, signer.hashedrekord(t, []byte("artifact")))
	hashed["signature"].(map[string]any)["publicKey"] = at()
	for name, body := range map[string]any{
		"hashedrekord": raw("hashedrekord", "0.0.1", hashed),
		"rekord":       raw("rekord", "0.0.1", map[string]any{"data": at(), "signature": map[string]any{"format": "pgp", "url": u, "publicKey": at()}}),
		"rekord x509":  raw("rekord", "0.0.1", map[string]any{"data": at(), "signature": map[string]any{"format": "x509", "url": u, "publicKey": at()}}),
		"rpm":          raw("rpm", "0.0.1", map[string]any{"package": at(), "publicKey": at()}),
		"alpine":       raw("alpine", "0.0.1", map[string]any{"package": at(), "publicKey": at()}),
		"jar":          raw("jar", "0.0.1", map[string]any{"archive": at(), "signature": map[string]any{"publicKey": at()}}),
		"helm":         raw("helm", "0.0.1", map[string]any{"chart": map[string]any{"provenance": at()}, "publicKey": at()}),
		"tuf":          raw("tuf", "0.0.1", map[string]any{"metadata": at(), "root": at()}),
		"cose":         raw("cose", "0.0.1", map[string]any{"publicKey": at(), "message": u, "data": at()}),
		"dsse":         raw("dsse", "0.0.1", map[string]any{"proposedContent": map[string]any{"envelope": u, "verifiers": []any{at()}}}),
		"intoto":       raw("intoto", "0.0.1", map[string]any{"publicKey": at(), "content": map[string]any{"envelope": at(), "url": u}}),
		"rfc3161":      raw("rfc3161", "0.0.1", map[string]any{"tsr": at()}),
	} {
		t.Run(name, func(t *testing.T) {
			if a := i.post(createPath, body); a.code < 400 || a.code >= 500 {
				t.Errorf("create: %d %s", a.code, a.body)
			}
			if a := i.post(createPath+"/retrieve", map[string]any{"entries": []any{body}}); a.code >= 500 {
				t.Errorf("retrieve: %d %s", a.code, a.body)
			}
		})
	}
	for _, format := range []string{"pgp", "x509", "minisign", "ssh", "tuf"} {
		a := i.post(indexPath, map[string]any{"publicKey": map[string]any{"format": format, "url": u}})
		if a.code < 400 || a.code >= 500 {
			t.Errorf("search by %s key: %d %s", format, a.code, a.body)
		}
	}
	select {
	case from := <-dialled:
		t.Errorf("the server connected from %s", from)
	case <-time.After(200 * time.Millisecond):
	}
}

func TestHostileQueries(t *testing.T) {
	i := start(t, newConfig(t))
	for _, c := range []struct {
		name, body string
		want       int
	}{
		{"not JSON", `hello`, http.StatusBadRequest},
		{"an array", `[]`, http.StatusBadRequest},
		{"a short hash", `{"hash":"abcd"}`, http.StatusUnprocessableEntity},
		{"an unknown algorithm", `{"hash":"md5:` + strings.Repeat("a", 32) + `"}`, http.StatusUnprocessableEntity},
		{"no address", `{"email":"nobody"}`, http.StatusUnprocessableEntity},
		{"an unknown operator", `{"operator":"xor","hash":"` + strings.Repeat("a", 64) + `"}`, http.StatusUnprocessableEntity},
		{"an unknown key format", `{"publicKey":{"format":"rot13","content":"eA=="}}`, http.StatusUnprocessableEntity},
		{"no key format", `{"publicKey":{"content":"eA=="}}`, http.StatusUnprocessableEntity},
		{"no key", `{"publicKey":{"format":"x509"}}`, http.StatusBadRequest},
		{"a long subject", `{"subject":"` + strings.Repeat("a", 513) + `"}`, http.StatusUnprocessableEntity},
		{"a large query", `{"subject":"` + strings.Repeat("a", maxQueryBytes) + `"}`, http.StatusRequestEntityTooLarge},
		{"SQL", `{"subject":"' OR 1=1 --"}`, http.StatusOK},
	} {
		t.Run(c.name, func(t *testing.T) {
			if a := i.post(indexPath, []byte(c.body)); a.code != c.want {
				t.Errorf("%d %.200s, want %d", a.code, a.body, c.want)
			}
		})
	}
	if a := i.do(http.MethodPost, indexPath, "text/plain", strings.NewReader("{}")); a.code != http.StatusUnsupportedMediaType {
		t.Errorf("text/plain: %d %s", a.code, a.body)
	}
	if a := i.get(indexPath); a.code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d %s", a.code, a.body)
	}
}

func TestOversizedBody(t *testing.T) {
	cfg := newConfig(t)
	cfg.MaxBodyBytes = 64 << 10
	i := start(t, cfg)
	body := []byte(`{"kind":"hashedrekord","apiVersion":"0.0.1","spec":"` + strings.Repeat("a", 65<<10) + `"}`)
	for name, reader := range map[string]io.Reader{
		"of known length":   bytes.NewReader(body),
		"of unknown length": io.MultiReader(bytes.NewReader(body)),
	} {
		for _, path := range []string{createPath, createPath + "/retrieve", indexPath} {
			if a := i.do(http.MethodPost, path, "application/json", reader); a.code != http.StatusRequestEntityTooLarge {
				t.Errorf("POST %s %s: %d %.200s", path, name, a.code, a.body)
			}
			reader = io.MultiReader(bytes.NewReader(body))
		}
	}
	i.create(newIdentity(t, "a@example.com").hashedrekord(t, []byte("artifact")))
}

// Large bodies wait for each other, and not for ever; small ones do not wait.
func TestTooManyLargeBodies(t *testing.T) {
	i := start(t, newConfig(t))
	i.timeout = 2 * time.Second
	for range largeBodies {
		i.large <- struct{}{}
	}
	// A JSON string may not end before it is decoded, so all of it is read.
	large := []byte(`{"kind":"` + strings.Repeat("a", 2*largeBodyBytes) + `"}`)
	for _, path := range []string{createPath, createPath + "/retrieve"} {
		a := i.post(path, large)
		if a.code != http.StatusServiceUnavailable || a.header.Get("Retry-After") == "" {
			t.Errorf("POST %s: %d, Retry-After %q: %.200s", path, a.code, a.header.Get("Retry-After"), a.body)
		}
	}
	i.create(newIdentity(t, "a@example.com").hashedrekord(t, []byte("artifact")))
	for range largeBodies {
		<-i.large
	}
	for range 2 * largeBodies {
		if a := i.post(createPath, large); a.code < 400 || a.code >= 500 {
			t.Errorf("with room again: %d %.200s", a.code, a.body)
		}
	}
}

// A body that never ends takes a bounded time.
func TestSlowBody(t *testing.T) {
	i := start(t, newConfig(t))
	i.timeout = 200 * time.Millisecond
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = io.WriteString(w, `{"kind":"`) }() // and then nothing
	if a := i.do(http.MethodPost, createPath, "application/json", r); a.code != http.StatusRequestTimeout {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func FuzzSearch(f *testing.F) {
	cfg := newConfig(f)
	s, err := New(f.Context(), cfg)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.Error(err)
		}
	})
	signer := newIdentity(f, "a@example.com")
	for _, q := range []any{
		map[string]any{},
		map[string]any{"hash": sha256Hex(nil), "email": "a@example.com", "subject": "x", "operator": "and"},
		map[string]any{"publicKey": map[string]any{"format": "x509", "content": signer.certPEM}},
		map[string]any{"publicKey": map[string]any{"format": "ssh", "content": []byte("ssh-ed25519 AAAA x")}},
		map[string]any{"publicKey": map[string]any{"format": "minisign", "content": []byte("untrusted comment: x\nRW")}},
		map[string]any{"publicKey": map[string]any{"format": "pgp", "content": []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n")}},
		map[string]any{"publicKey": map[string]any{"format": "tuf", "content": []byte(`{"signed":{}}`)}},
	} {
		f.Add([]byte(asJSON(q)))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, indexPath, bytes.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		rec := httptest.NewRecorder()
		s.Handler().ServeHTTP(rec, req)
		if rec.Code >= 500 {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	})
}
