package durability

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ct "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

const subject = "burst@example.com"

// A ledger is what clients were told: every signature that was acknowledged in
// all its parts, and every tree head in an answer.
type ledger struct {
	instance *e2etest.Instance
	verifier *keyless.Verifier
	issuer   *ctx509.Certificate // of the certificates
	rekor    *witness
	ct       *witness

	mu     sync.Mutex
	signed []*keyless.Signature
	forked error
}

func newLedger(t *testing.T, i *e2etest.Instance) *ledger {
	t.Helper()
	verifier, err := keyless.NewVerifier(getRaw(t, i.URL+"/trust/trusted_root.json"), subject, i.Origin(t)+"/ci", true)
	if err != nil {
		t.Fatal(err)
	}
	var bundle struct {
		Chains []struct {
			Certificates []string `json:"certificates"`
		} `json:"chains"`
	}
	get(t, i.URL+"/api/v2/trustBundle", &bundle)
	issuer, err := ctx509util.CertificateFromPEM([]byte(bundle.Chains[0].Certificates[0]))
	if err != nil {
		t.Fatal(err)
	}
	return &ledger{instance: i, verifier: verifier, issuer: issuer, rekor: rekorLog(i), ct: ctLog(i)}
}

func (l *ledger) client(workers int) *keyless.Client { return clientOf(l.instance, workers) }

func clientOf(i *e2etest.Instance, workers int) *keyless.Client {
	token := keyless.SocketTokens(filepath.Join(i.Dir, "run", "admin.sock"), subject, workers)
	url := i.URL
	return keyless.NewClient(keyless.Services{Fulcio: url, Rekor: url, TSA: url}, token, workers)
}

// note writes down an acknowledged signature.
func (l *ledger) note(s *keyless.Signature) {
	err := l.rekor.sawCheckpoint(s.Entry.Verification.InclusionProof.Checkpoint)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.signed = append(l.signed, s)
	if err != nil && l.forked == nil {
		l.forked = err
	}
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.signed)
}

// burst signs with some workers until the server goes away or the context ends
// and returns a function that waits for the last of them.
func (l *ledger) burst(ctx context.Context, workers int) (wait func()) {
	client := l.client(workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				var digest [sha256.Size]byte
				rand.Read(digest[:])
				s, err := client.Sign(ctx, digest)
				if err != nil {
					return // the server has gone; what it did not acknowledge does not count
				}
				l.note(s)
			}
		})
	}
	wg.Go(func() { l.watchCT(ctx) })
	return func() {
		wg.Wait()
		client.HTTP.CloseIdleConnections()
	}
}

// watchCT notes the CT log's tree heads, one after the other, until the server
// goes away.
func (l *ledger) watchCT(ctx context.Context) {
	for ctx.Err() == nil {
		resp, err := http.Get(l.instance.URL + "/ctlog/ct/v1/get-sth")
		if err != nil {
			return
		}
		var head sth
		err = json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&head)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return
		}
		if err := l.ct.saw(head.Size, hex.EncodeToString(head.Root)); err != nil {
			l.mu.Lock()
			l.forked = err
			l.mu.Unlock()
			return
		}
	}
}

// holds demands that the instance, as it is now, keeps every promise in the
// ledger.
func (l *ledger) holds(t *testing.T) {
	t.Helper()
	l.instance.Healthy(t)
	if l.forked != nil {
		t.Fatal(l.forked)
	}
	size, root := ctHead(t, l.instance)
	l.ct.holds(t, size, root)
	for _, s := range l.signed {
		l.holdsEntry(t, s)
		l.holdsCertificate(t, s, size, root)
	}
	size, root = rekorHead(t, l.instance)
	l.rekor.holds(t, size, root)
	l.onRecord(t)
}

// holdsEntry finds an entry by its id and by the digest, with a proof that it
// is in the tree now; all else of the signature is verified with it.
func (l *ledger) holdsEntry(t *testing.T, s *keyless.Signature) {
	t.Helper()
	now, err := keyless.ParseLogEntry(getRaw(t, l.instance.URL+"/api/v1/log/entries/"+s.Entry.UUID))
	if err != nil {
		t.Fatalf("entry %s: %v", s.Entry.UUID, err)
	}
	if now.LogIndex != s.Entry.LogIndex || !bytes.Equal(now.Body, s.Entry.Body) || now.LogID != s.Entry.LogID {
		t.Fatalf("entry %s is another one now: index %d, was %d", s.Entry.UUID, now.LogIndex, s.Entry.LogIndex)
	}
	if err := l.rekor.sawCheckpoint(now.Verification.InclusionProof.Checkpoint); err != nil {
		t.Fatal(err)
	}
	again := *s
	again.Entry = now
	if err := l.verifier.Verify(&again); err != nil {
		t.Fatalf("entry %s does not verify: %v", s.Entry.UUID, err)
	}
	l.holdsSearch(t, s)
}

// holdsSearch finds an entry by its digest.
func (l *ledger) holdsSearch(t *testing.T, s *keyless.Signature) {
	t.Helper()
	query := fmt.Sprintf(`{"hash":"sha256:%x"}`, s.Digest)
	resp, err := http.Post(l.instance.URL+"/api/v1/index/retrieve", "application/json", strings.NewReader(query))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	if err := json.Unmarshal(data, &found); err != nil || len(found) != 1 || found[0] != s.Entry.UUID {
		t.Fatalf("a search for %x finds %s, not %s", s.Digest, data, s.Entry.UUID)
	}
}

// holdsCertificate finds the certificate of a signature in the CT log by the
// promise embedded in it (RFC 6962 section 4.5).
func (l *ledger) holdsCertificate(t *testing.T, s *keyless.Signature, size uint64, root string) {
	t.Helper()
	cert, err := ctx509.ParseCertificate(s.Certificate)
	if ctx509.IsFatal(err) {
		t.Fatal(err)
	}
	scts, err := ctx509util.ParseSCTsFromSCTList(&cert.SCTList)
	if err != nil || len(scts) != 1 {
		t.Fatalf("want one embedded SCT, not %d: %v", len(scts), err)
	}
	leaf, err := ct.MerkleTreeLeafForEmbeddedSCT([]*ctx509.Certificate{cert, l.issuer}, scts[0].Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	hash, err := ct.LeafHashForLeaf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Index uint64   `json:"leaf_index"`
		Path  [][]byte `json:"audit_path"`
	}
	get(t, fmt.Sprintf("%s/ctlog/ct/v1/get-proof-by-hash?hash=%s&tree_size=%d", l.instance.URL, escape(hash[:]), size), &answer)
	want, err := hex.DecodeString(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, answer.Index, size, hash[:], answer.Path, want); err != nil {
		t.Fatalf("certificate %s is not in the CT log: %v", cert.SerialNumber, err)
	}
}
