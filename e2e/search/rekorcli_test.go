// Package search shows that an auditor with rekor-cli finds what was signed,
// with a proof that it is in the log.
package search

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/e2e/stock"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

// TestAirGap runs the other tests where nothing but loopback exists.
func TestAirGap(t *testing.T) { e2etest.AirGap(t) }

const subject = "release@example.com"

var uuid = regexp.MustCompile(`\b[0-9a-f]{80}\b`)

// A desk is an auditor's: rekor-cli pointed at an instance.
type desk struct {
	*e2etest.Instance
	rekor  *e2etest.Program
	cosign *e2etest.Program
}

func newDesk(t *testing.T, i *e2etest.Instance) *desk {
	t.Helper()
	d := &desk{Instance: i}
	d.rekor = e2etest.NewProgram(t, stock.Path(t, stock.RekorCLI))
	d.cosign = e2etest.NewProgram(t, stock.Path(t, stock.Cosign3))
	d.cosign.OK(t, "initialize", "--mirror", d.URL+"/tuf", "--root", d.URL+"/tuf/1.root.json", "--root-checksum", d.RootSHA256)
	return d
}

func (d *desk) ask(t *testing.T, args ...string) string {
	t.Helper()
	return d.rekor.OK(t, append([]string{"--rekor_server", d.URL}, args...)...).Stdout
}

// signBlob signs a new file and returns its path.
func (d *desk) signBlob(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	d.cosign.OK(t, "sign-blob", "--identity-token", d.Token(t, subject), "--yes", "--bundle", path+".json", path)
	return path
}

// one demands that a search has exactly one answer.
func one(t *testing.T, said string) string {
	t.Helper()
	found := uuid.FindAllString(said, -1)
	if len(found) != 1 {
		t.Fatalf("want one entry, not %d: %s", len(found), said)
	}
	return found[0]
}

func TestBlob(t *testing.T) { e2etest.OnEngines(t, testBlob) }

func testBlob(t *testing.T, i *e2etest.Instance) {
	d := newDesk(t, i)
	blob := d.signBlob(t, "searched for")
	d.signBlob(t, "another")
	entry := one(t, d.ask(t, "search", "--artifact", blob))

	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("searched for")))
	for _, sha := range []string{sum, "sha256:" + sum} {
		if got := one(t, d.ask(t, "search", "--sha", sha)); got != entry {
			t.Errorf("search --sha %s finds %s, --artifact finds %s", sha, got, entry)
		}
	}
	if found := uuid.FindAllString(d.ask(t, "search", "--email", subject), -1); len(found) != 2 {
		t.Errorf("want the two entries of %s, not %q", subject, found)
	}
	t.Run("get", func(t *testing.T) {
		got := d.ask(t, "get", "--uuid", entry, "--format", "json")
		var e struct {
			Body     json.RawMessage
			LogIndex int64
			UUID     string
		}
		if err := json.Unmarshal([]byte(got), &e); err != nil {
			t.Fatalf("%v: %s", err, got)
		}
		if e.UUID != entry || !strings.Contains(string(e.Body), sum) {
			t.Errorf("not the entry of the blob: %s", got)
		}
		same := d.ask(t, "get", "--log-index", fmt.Sprint(e.LogIndex), "--format", "json")
		if !strings.Contains(same, entry) {
			t.Errorf("log index %d is not entry %s: %s", e.LogIndex, entry, same)
		}
	})
	t.Run("verify", func(t *testing.T) {
		if said := d.ask(t, "verify", "--uuid", entry); !strings.Contains(said, "Computed Root Hash") && !strings.Contains(said, "Entry Hash") {
			t.Errorf("no inclusion proof: %s", said)
		}
	})
	t.Run("nothing found", func(t *testing.T) {
		none := fmt.Sprintf("%x", sha256.Sum256([]byte("never signed")))
		d.rekor.Refuses(t, []string{"could not be located", "no matching entries", "not found"},
			"--rekor_server", d.URL, "search", "--sha", none)
	})
}

// TestImage finds the signature and the attestation of an image by its digest:
// both are DSSE envelopes about it.
func TestImage(t *testing.T) { e2etest.OnEngines(t, testImage) }

func testImage(t *testing.T, i *e2etest.Instance) {
	d := newDesk(t, i)
	app := e2etest.Distribution(t).Push(t, "team/app", "audited")
	d.cosign.OK(t, "sign", "--identity-token", d.Token(t, subject), "--yes", app.Ref())
	entry := one(t, d.ask(t, "search", "--sha", app.Digest.Hex))
	d.ask(t, "get", "--uuid", entry)
	d.ask(t, "verify", "--uuid", entry)

	sbom := filepath.Join(t.TempDir(), "sbom.json")
	if err := os.WriteFile(sbom, []byte(`{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	d.cosign.OK(t, "attest", "--identity-token", d.Token(t, subject), "--yes", "--type", "cyclonedx", "--predicate", sbom, app.Ref())
	found := uuid.FindAllString(d.ask(t, "search", "--sha", app.Digest.Hex), -1)
	if len(found) != 2 {
		t.Fatalf("want the signature and the attestation, not %q", found)
	}
	for _, e := range found {
		d.ask(t, "verify", "--uuid", e)
	}
}

// TestLogInfo has rekor-cli keep the tree head it saw and prove, as the log
// grows, that each is an extension of the one before.
func TestLogInfo(t *testing.T) { e2etest.OnEngines(t, testLogInfo) }

func testLogInfo(t *testing.T, i *e2etest.Instance) {
	d := newDesk(t, i)
	size := func() (n int64) {
		said := d.ask(t, "loginfo", "--format", "json")
		var info struct{ ActiveTreeSize int64 }
		if err := json.Unmarshal([]byte(said), &info); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		return info.ActiveTreeSize
	}
	before := size()
	for i := range 3 {
		d.signBlob(t, fmt.Sprint("grows ", i))
		after := size()
		if after != before+1 {
			t.Fatalf("tree size %d after one entry more than %d", after, before)
		}
		before = after
	}
	if before >= 2 {
		d.ask(t, "logproof", "--first-size", "1", "--last-size", fmt.Sprint(before))
	}
}

// TestUpload logs a signature that no certificate stands behind: rekor-cli's
// own way in.
func TestUpload(t *testing.T) { e2etest.OnEngines(t, testUpload) }

func testUpload(t *testing.T, i *e2etest.Instance) {
	d := newDesk(t, i)
	artifact, signature, key := signed(t)
	args := []string{"--type", "hashedrekord", "--pki-format", "x509", "--artifact", artifact, "--signature", signature, "--public-key", key}
	entry := one(t, d.ask(t, append([]string{"upload"}, args...)...))
	// verify names the leaf's hash, which an id ends with.
	if said := d.ask(t, append([]string{"verify"}, args...)...); !strings.Contains(said, "Entry Hash: "+entry[16:]) {
		t.Errorf("verify does not find %s: %s", entry, said)
	}
	if got := one(t, d.ask(t, "search", "--public-key", key, "--pki-format", "x509")); got != entry {
		t.Errorf("search by key finds %s, upload made %s", got, entry)
	}
	// The same entry again is answered with the one that exists (409), which
	// must be readable at once.
	if got := uuid.FindString(d.ask(t, append([]string{"upload"}, args...)...)); got != entry {
		t.Errorf("uploading again names %q, not %s", got, entry)
	}
}
