package appliance_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/pki"
	"github.com/sigbox/sigbox/internal/state"
)

// request asks for a certificate and returns the answer.
func request(t *testing.T, dir, url string) (int, []byte) {
	t.Helper()
	token, err := appliance.AskToken(t.Context(), dir, appliance.TokenRequest{Subject: "ci@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		t.Fatal(err)
	}
	return post(t, url+"/api/v2/signingCert", map[string]any{
		"credentials":               map[string]any{"oidcIdentityToken": token.Token},
		"certificateSigningRequest": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	})
}

func post(t *testing.T, url string, v any) (int, []byte) {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, out
}

// certify is request where it must work: leaf and issuer.
func certify(t *testing.T, dir, url string) []*x509.Certificate {
	t.Helper()
	code, out := request(t, dir, url)
	if code != http.StatusOK {
		t.Fatalf("%d %s", code, out)
	}
	var answer struct {
		Embedded struct {
			Chain struct{ Certificates []string }
		} `json:"signedCertificateEmbeddedSct"`
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		t.Fatal(err)
	}
	certs, err := pki.Parse([]byte(strings.Join(answer.Embedded.Chain.Certificates, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

func verifyAudit(t *testing.T, dir string) appliance.AuditReport {
	t.Helper()
	r, err := appliance.VerifyAudit(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestIssuanceStopsWithoutRecord: the record's disk takes no more. Nothing is
// issued and nothing is logged until it does again. (At Certainly, 5,868
// certificates left without audit records.)
func TestIssuanceStopsWithoutRecord(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	// The record is made the largest file by far, so that a limit of the size of
	// files stops it alone.
	instance, err := state.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	record := audit.Options{Dir: filepath.Join(dir, "audit"), Instance: instance.ID}
	l, err := audit.Open(record)
	if err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if err := l.Append(t.Context(), audit.Event{Type: audit.Refused, Service: "test", Fields: map[string]any{"x": strings.Repeat("x", 60<<10)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	serve(t, dir)
	certify(t, dir, url)

	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(record.Dir, "audit-000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: uint64(info.Size()) + 100, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was)
	for range 5 {
		if code, out := request(t, dir, url); code != http.StatusServiceUnavailable || bytes.Contains(out, []byte("CERTIFICATE")) || bytes.Contains(out, []byte(dir)) {
			t.Errorf("without a record: %d %s", code, out)
		}
	}
	if code, body := get(t, url+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), "audit") {
		t.Errorf("readyz: %d %s", code, body)
	}
	for _, path := range []string{"/ctlog/ct/v1/get-sth", "/api/v1/log", "/tuf/timestamp.json"} {
		if code, _ := get(t, url+path); code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
	}
	if r := verifyAudit(t, dir); !r.Same || r.Issued != 1 || r.Logged != 1 {
		t.Errorf("%+v", r)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if code, _ := get(t, url+"/readyz"); code == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("does not go on when there is room")
		}
	}
	certify(t, dir, url)
	if r := verifyAudit(t, dir); !r.Same || r.Issued != 2 || r.Logged != 2 {
		t.Errorf("%+v", r)
	}
}

// forge makes the record anew, as somebody could who may write to the folder:
// the chain is whole, and what it says is what edit returns.
func forge(t *testing.T, dir string, edit func([]audit.Event) []audit.Event) {
	t.Helper()
	instance, err := state.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := audit.Options{Dir: filepath.Join(dir, "audit"), Instance: instance.ID}
	var events []audit.Event
	_, err = audit.Read(t.Context(), o.Dir, o.Instance, func(r *audit.Record) error {
		if r.Type == audit.Segment {
			return nil
		}
		e := audit.Event{Time: r.Time, Type: r.Type, Service: r.Service}
		d := json.NewDecoder(bytes.NewReader(r.Fields))
		d.UseNumber()
		if len(r.Fields) > 0 {
			if err := d.Decode(&e.Fields); err != nil {
				return err
			}
		}
		events = append(events, e)
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := audit.Create(o); err != nil {
		t.Fatal(err)
	}
	l, err := audit.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit(events) {
		if err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// without leaves out the records of a type about a serial number.
func without(typ, serial string) func([]audit.Event) []audit.Event {
	return func(events []audit.Event) []audit.Event {
		return slices.DeleteFunc(events, func(e audit.Event) bool { return e.Type == typ && e.Fields["serial"] == serial })
	}
}

// changed gives the records of a type about a serial number another field.
func changed(typ, serial, field string, value any) func([]audit.Event) []audit.Event {
	return func(events []audit.Event) []audit.Event {
		for i, e := range events {
			if e.Type == typ && e.Fields["serial"] == serial {
				events[i].Fields = maps.Clone(e.Fields)
				events[i].Fields[field] = value
			}
		}
		return events
	}
}

func TestAuditVerify(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	first, second := certify(t, dir, url), certify(t, dir, url)
	serial := first[0].SerialNumber.Text(16)
	for range 120 {
		post(t, url+"/api/v2/signingCert", map[string]any{"credentials": map[string]any{"oidcIdentityToken": "a.b.c"}})
	}
	// Anybody may send a certificate to the log that has one.
	var chain []string
	for _, c := range second {
		chain = append(chain, base64.StdEncoding.EncodeToString(c.Raw))
	}
	if code, out := post(t, url+"/ctlog/ct/v1/add-chain", map[string]any{"chain": chain}); code != http.StatusOK {
		t.Fatalf("%d %s", code, out)
	}
	good := func(when string, neverIssued uint64) {
		t.Helper()
		r := verifyAudit(t, dir)
		if !r.Same || r.Differences.Count != 0 || r.NeverIssued.Count != neverIssued || r.Issued+neverIssued != 2 || r.Logged != 2 || r.Submitted != 1 {
			t.Errorf("%s: %+v", when, r)
		}
	}
	good("while it runs", 0)
	stop()
	good("stopped", 0)
	if r := verifyAudit(t, dir); r.Refused != 120 {
		t.Errorf("%d refusals on record, want all 120", r.Refused)
	}
	kept := t.TempDir()
	if err := os.CopyFS(filepath.Join(kept, "audit"), os.DirFS(filepath.Join(dir, "audit"))); err != nil {
		t.Fatal(err)
	}
	restore := func() {
		t.Helper()
		if err := os.RemoveAll(filepath.Join(dir, "audit")); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(dir, "audit"), os.DirFS(filepath.Join(kept, "audit"))); err != nil {
			t.Fatal(err)
		}
	}

	// The process died between the log's answer and the record.
	forge(t, dir, without(audit.Issued, serial))
	good("after a crash", 1)

	sub := second[0].SerialNumber.Text(16)
	for _, c := range []struct {
		name string
		edit func([]audit.Event) []audit.Event
		want string
	}{
		{"a certificate that nobody recorded", func(e []audit.Event) []audit.Event {
			return without(audit.Intended, serial)(without(audit.Issued, serial)(e))
		}, "in the log, and not on record"},
		{"issued unannounced", without(audit.Intended, serial), "not announced before"},
		{"never logged", func(e []audit.Event) []audit.Event {
			return append(e, audit.Event{Type: audit.Issued, Fields: map[string]any{"serial": "abc", "sct_timestamp": time.Now().UnixMilli()}})
		}, "issued, and not in the log"},
		{"twice", func(e []audit.Event) []audit.Event {
			i := slices.IndexFunc(e, func(e audit.Event) bool { return e.Type == audit.Issued })
			return append(e, e[i])
		}, "issued twice"},
		{"another entry", changed(audit.Issued, serial, "ct_leaf_hash", strings.Repeat("ab", 32)), "than the one issued"},
		{"another announcement", changed(audit.Intended, serial, "tbs_sha256", strings.Repeat("ab", 32)), "than the one announced"},
		{"another certificate sent there", changed(audit.Issued, sub, "sha256", strings.Repeat("ab", 32)), "a certificate in the log that is not on record"},
		{"unreadable", changed(audit.Issued, serial, "sha256", 5), "cannot be read"},
		{"an entry beyond the log", func(e []audit.Event) []audit.Event {
			return append(e, audit.Event{Type: audit.Appended, Fields: map[string]any{"log_index": 0}})
		}, "beyond the signature log's size"},
	} {
		restore()
		forge(t, dir, c.edit)
		r := verifyAudit(t, dir)
		if r.Same || r.Differences.Count == 0 || !strings.Contains(r.Differences.List[0].What, c.want) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	restore()
	good("at last", 0)
}

// TestDamagedRecordIsServedAround: nothing is signed, and what is there is
// served, until an administrator goes on.
func TestDamagedRecordIsServedAround(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	certify(t, dir, url)
	stop()
	path := filepath.Join(dir, "audit", "audit-000001.jsonl")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The certificate's record names somebody else now.
	if err := os.WriteFile(path, bytes.Replace(data, []byte(`"san":"ci@`), []byte(`"san":"xx@`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	stop = serve(t, dir)
	if code, body := get(t, url+"/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(string(body), "audit-000001.jsonl line 5") {
		t.Errorf("readyz: %d %s", code, body)
	}
	if code, body := request(t, dir, url); code != http.StatusServiceUnavailable {
		t.Errorf("issued on a damaged record: %d %s", code, body)
	}
	if code, _ := get(t, url+"/ctlog/ct/v1/get-sth"); code != http.StatusOK {
		t.Errorf("get-sth: %d", code)
	}
	if r := verifyAudit(t, dir); r.Same || len(r.Damage) != 1 || !strings.Contains(r.Damage[0], "line 5") {
		t.Errorf("%+v", r)
	}
	if err := appliance.ExportAudit(t.Context(), dir, appliance.AuditFilter{}, false, io.Discard); !errors.Is(err, audit.ErrDamaged) {
		t.Errorf("exported: %v", err)
	}
	if _, err := appliance.AdoptAudit(dir); !errors.Is(err, state.ErrLocked) {
		t.Errorf("adopted while it runs: %v", err)
	}
	stop()
	if damage, err := appliance.AdoptAudit(dir); damage == nil || err != nil {
		t.Fatalf("adopting: %v, %v", damage, err)
	}
	stop = serve(t, dir)
	certify(t, dir, url)
	stop()
	if damage, err := appliance.AdoptAudit(dir); damage != nil || err != nil {
		t.Errorf("again: %v, %v", damage, err)
	}
	if r := verifyAudit(t, dir); r.Same || len(r.Damage) != 1 || r.Differences.Count != 0 || r.Issued != 2 {
		t.Errorf("%+v", r)
	}
}

// TestAuditExport while certificates are issued.
func TestAuditExport(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	serve(t, dir)
	serial := certify(t, dir, url)[0].SerialNumber.Text(16)
	export := func(f appliance.AuditFilter, csv bool) string {
		t.Helper()
		var out strings.Builder
		if err := appliance.ExportAudit(context.Background(), dir, f, csv, &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if all := export(appliance.AuditFilter{}, false); strings.Count(all, "\n") != 4 || !strings.Contains(all, serial) {
		t.Error(all)
	}
	if issued := export(appliance.AuditFilter{Types: []string{audit.Issued}}, false); strings.Count(issued, "\n") != 1 || !strings.Contains(issued, serial) {
		t.Error(issued)
	}
	if later := export(appliance.AuditFilter{Since: time.Now().Add(time.Hour)}, false); later != "" {
		t.Error(later)
	}
	// What strangers send is text to a spreadsheet, not a formula.
	header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"ES256"}`))
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iss":"=cmd()","exp":%d}`, time.Now().Add(time.Hour).Unix()))
	post(t, url+"/api/v2/signingCert", map[string]any{"credentials": map[string]any{"oidcIdentityToken": header + "." + claims + ".AAAA"}})
	if out := export(appliance.AuditFilter{Types: []string{audit.Refused}}, true); !strings.Contains(out, ",'=cmd()") || !strings.HasPrefix(out, "seq,time,type,service,serial,") {
		t.Error(out)
	}
}
