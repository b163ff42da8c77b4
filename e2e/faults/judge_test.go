package faults

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	ct "github.com/google/certificate-transparency-go"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	ctx509util "github.com/google/certificate-transparency-go/x509util"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

// A verdict is what became of the promises.
type verdict string

const (
	kept        verdict = "ok"          // ready again, and every promise holds
	refused     verdict = "refused"     // not ready, for the reason that the fault must give
	beyond      verdict = "beyond"      // accepted, as nothing on one machine could tell
	open        verdict = "open"        // lost, by one of the gaps that docs/faults.md names
	lost        verdict = "LOST"        // something acknowledged is not there
	fork        verdict = "FORK"        // two roots for a size, or a root that its leaves do not have
	unexplained verdict = "UNEXPLAINED" // a refusal, a delay or an end without the reason
)

// bad tells whether a verdict fails the run.
func (v verdict) bad() bool { return v == lost || v == fork || v == unexplained }

// A broken promise is why a stage does not pass.
type broken struct {
	verdict verdict
	what    string
}

func (b *broken) Error() string { return string(b.verdict) + ": " + b.what }

func breaks(v verdict, format string, args ...any) error {
	return &broken{v, fmt.Sprintf(format, args...)}
}

// judge starts the stage without its fault and holds it to the ledger. refusal
// is what the instance may say instead of starting or signing; nil: nothing.
func (s *stage) judge(refusal *regexp.Regexp, readyLimit time.Duration) (verdict, string) {
	err := s.examine(refusal, readyLimit)
	s.kill()
	var b *broken
	switch {
	case err != nil && s.ledger.contradicted != nil: // the worst that can be said
		return fork, s.ledger.contradicted.Error()
	case err == nil:
		return kept, ""
	case errors.As(err, &b):
		return b.verdict, b.what
	default:
		return unexplained, err.Error()
	}
}

func (s *stage) examine(refusal *regexp.Regexp, readyLimit time.Duration) error {
	l := s.ledger
	if err := l.contradicted; err != nil {
		return breaks(fork, "before the restart: %v", err)
	}
	if err := l.unexplained; err != nil {
		return breaks(unexplained, "under the fault: %v", err)
	}
	if err := s.reopen(readyLimit); err != nil {
		return s.examineRefusal(err, refusal)
	}
	if s.readyIn > readyLimit {
		return breaks(unexplained, "ready only after %v", s.readyIn.Round(time.Millisecond))
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	spent := l.spent
	client := s.signer(1)
	if err := client.watch(ctx); err != nil {
		return s.refuses(refusal, "reading the heads", err)
	}
	if err := client.sign(ctx); err != nil {
		return s.refuses(refusal, "signing, though /readyz says yes", err)
	}
	if spent != "" {
		if err := client.replay(ctx, spent); err != nil {
			return err
		}
	}
	if err := client.watch(ctx); err != nil {
		return s.refuses(refusal, "reading the heads", err)
	}
	if err := s.examineRekor(ctx, client, refusal); err != nil {
		return err
	}
	if err := s.examineCT(ctx, client, refusal); err != nil {
		return err
	}
	if err := s.examineAudit(); err != nil {
		return err
	}
	if err := l.contradicted; err != nil {
		return breaks(fork, "%v", err)
	}
	return nil
}

// reopen starts the process on what the fault left. A start that takes too long
// is begun again from the same state, in case it was the machine that was slow.
func (s *stage) reopen(limit time.Duration) error {
	state := s.dir + "-state"
	if s.inside == nil {
		if err := copyTree(state, s.dir); err != nil {
			return err
		}
		defer os.RemoveAll(state)
	}
	for attempt := 1; ; attempt++ {
		err := s.open()
		var not *unready
		for errors.As(err, &not) && time.Since(s.began) < min(limit, 2*time.Second) {
			time.Sleep(20 * time.Millisecond)
			err = s.ready(limit)
		}
		if s.readyIn = time.Since(s.began); err != nil {
			s.readyIn = 0
		}
		if err != nil || s.readyIn <= limit || attempt == 3 || s.inside != nil {
			return err
		}
		s.kill()
		if err := errors.Join(os.RemoveAll(s.dir), copyTree(s.dir, state)); err != nil {
			return err
		}
	}
}

// refuses is the verdict on a request that failed after the restart.
func (s *stage) refuses(refusal *regexp.Regexp, doing string, err error) error {
	if s.ledger.contradicted != nil {
		return breaks(fork, "%v", s.ledger.contradicted)
	}
	if refusal != nil && refusal.MatchString(err.Error()) {
		return breaks(refused, "%v", err)
	}
	return breaks(unexplained, "%s: %v", doing, err)
}

// examineRefusal looks at an instance that does not start, or is not ready: the
// reason must be the fault's, nothing may be signed, and what it still shows must
// be what was shown.
func (s *stage) examineRefusal(why error, refusal *regexp.Regexp) error {
	if refusal == nil || !refusal.MatchString(why.Error()) {
		return breaks(unexplained, "%v", why)
	}
	var gone *exited
	var not *unready
	switch {
	case errors.As(why, &gone):
		if (gone.code != 1 && gone.code != 2) || !strings.Contains(gone.said, "sigboxd: error: ") || strings.Contains(gone.said, "goroutine ") {
			return breaks(unexplained, "%v", why)
		}
	case errors.As(why, &not):
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		client := s.signer(1)
		if err := client.sign(ctx); err == nil {
			return breaks(unexplained, "it signs, and says it would not: %v", why)
		}
		for _, log := range []struct {
			seen heads
			read func(context.Context, *http.Client, string, *logKeys) (head, error)
		}{{s.ledger.rekor, rekorHead}, {s.ledger.ct, ctHead}} {
			h, err := log.read(ctx, client.HTTP, s.url, s.ledger.keys)
			if err != nil {
				continue // it need not show what it cannot vouch for
			}
			if newest := slices.Max(slices.Collect(maps.Keys(log.seen))); h.size < newest {
				return breaks(fork, "%s shows %d entries, %d were shown before; and says %v", h.log, h.size, newest, why)
			}
			s.ledger.saw(log.seen, h)
		}
		if err := s.ledger.contradicted; err != nil {
			return breaks(fork, "%v", err)
		}
	default:
		return breaks(unexplained, "%v", why)
	}
	return breaks(refused, "%v", why)
}

// replay demands that a token buys no second certificate.
func (s *signer) replay(ctx context.Context, token string) error {
	again := *s
	client := *s.Client
	client.HTTP = &http.Client{Transport: transport}
	client.Token = func(context.Context) (string, error) { return token, nil }
	again.Client = &client
	before := len(s.ledger.certificates)
	err := again.sign(ctx)
	s.ledger.spent = ""
	if err == nil || len(s.ledger.certificates) > before {
		return breaks(lost, "a token that was spent before the restart bought another certificate")
	}
	return nil
}

// examineRekor computes the whole tree from its leaves and holds every published
// root and every acknowledged entry to it.
func (s *stage) examineRekor(ctx context.Context, client *signer, refusal *regexp.Regexp) error {
	l := s.ledger
	verifier, err := keyless.NewVerifier(s.trusted, subject, s.url+"/ci", false)
	if err != nil {
		return err
	}
	newest := slices.Max(slices.Collect(maps.Keys(l.rekor)))
	if now, err := rekorHead(ctx, client.HTTP, s.url, l.keys); err == nil && now.size < newest {
		return breaks(lost, "rekor: a tree of %d is shown, and one of %d was published", now.size, newest)
	}
	var leaves [][32]byte
	byUUID := map[string]keyless.LogEntry{}
	for index := uint64(0); index < newest; index++ {
		var raw json.RawMessage
		err := getJSON(ctx, client.HTTP, fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", s.url, index), &raw)
		var status *keyless.StatusError
		if errors.As(err, &status) && status.Code == http.StatusNotFound {
			return breaks(lost, "rekor: no entry %d, though a tree of %d was published", index, newest)
		} else if err != nil {
			return s.refuses(refusal, fmt.Sprintf("reading entry %d", index), err)
		}
		entry, err := keyless.ParseLogEntry(raw)
		if err != nil {
			return breaks(lost, "rekor: entry %d: %v", index, err)
		}
		hash := leafHash(entry.Body)
		if entry.LogIndex != int64(index) || !strings.HasSuffix(entry.UUID, hex.EncodeToString(hash[:])) {
			return breaks(lost, "rekor: entry %d is answered as entry %d, %s", index, entry.LogIndex, entry.UUID)
		}
		h, err := l.keys.checkpoint(entry.Verification.InclusionProof.Checkpoint)
		if err != nil {
			return breaks(fork, "%v", err)
		}
		l.saw(l.rekor, h)
		leaves, byUUID[entry.UUID] = append(leaves, hash), entry
	}
	if err := sameRoots("rekor", rootsOf(leaves), l.rekor); err != nil {
		return err
	}
	for _, was := range l.entries {
		now, ok := byUUID[was.Entry.UUID]
		if !ok {
			return breaks(lost, "rekor: entry %d, %s, was acknowledged and is not there", was.Entry.LogIndex, was.Entry.UUID)
		}
		if now.LogIndex != was.Entry.LogIndex || !bytes.Equal(now.Body, was.Entry.Body) || now.IntegratedTime != was.Entry.IntegratedTime {
			return breaks(lost, "rekor: entry %s is another one now", was.Entry.UUID)
		}
		again := *was
		again.Entry = now
		if err := verifier.Verify(&again); err != nil && (!s.stepped || verifier.Verify(was) == nil) {
			return breaks(lost, "rekor: entry %s does not verify: %v", was.Entry.UUID, err)
		}
		found, err := client.search(ctx, was.Digest)
		if err != nil {
			return s.refuses(refusal, "searching", err)
		}
		if !slices.Contains(found, was.Entry.UUID) {
			return breaks(lost, "rekor: a search for entry %d, %s, finds %q", was.Entry.LogIndex, was.Entry.UUID, found)
		}
	}
	return s.consistent(l.rekor, newest, func(first, last uint64) ([][]byte, error) {
		var answer struct {
			Hashes []string `json:"hashes"`
		}
		err := getJSON(ctx, client.HTTP, fmt.Sprintf("%s/api/v1/log/proof?firstSize=%d&lastSize=%d", s.url, first, last), &answer)
		return decodeAll(answer.Hashes, hex.DecodeString, err)
	})
}

// search asks Rekor for the entries about a digest.
func (s *signer) search(ctx context.Context, digest [32]byte) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/api/v1/index/retrieve", strings.NewReader(fmt.Sprintf(`{"hash":"sha256:%x"}`, digest)))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, &keyless.StatusError{Code: resp.StatusCode}
	}
	var found []string
	return found, json.NewDecoder(resp.Body).Decode(&found)
}

// examineCT does for the certificates what examineRekor does for the entries.
func (s *stage) examineCT(ctx context.Context, client *signer, refusal *regexp.Regexp) error {
	l := s.ledger
	newest := slices.Max(slices.Collect(maps.Keys(l.ct)))
	if now, err := ctHead(ctx, client.HTTP, s.url, l.keys); err == nil && now.size < newest {
		return breaks(lost, "ct log: a tree of %d is shown, and one of %d was published", now.size, newest)
	}
	var leaves [][32]byte
	for uint64(len(leaves)) < newest {
		var answer struct {
			Entries []struct {
				Leaf []byte `json:"leaf_input"`
			} `json:"entries"`
		}
		err := getJSON(ctx, client.HTTP, fmt.Sprintf("%s/ctlog/ct/v1/get-entries?start=%d&end=%d", s.url, len(leaves), newest-1), &answer)
		if err != nil {
			return s.refuses(refusal, fmt.Sprintf("reading entries from %d of the ct log", len(leaves)), err)
		}
		if len(answer.Entries) == 0 {
			return breaks(lost, "ct log: no entry %d, though a tree of %d was published", len(leaves), newest)
		}
		for _, e := range answer.Entries {
			leaves = append(leaves, leafHash(e.Leaf))
		}
	}
	roots := rootsOf(leaves)
	if err := sameRoots("ct log", roots, l.ct); err != nil {
		return err
	}
	issuer, err := ctx509.ParseCertificate(s.issuer)
	if ctx509.IsFatal(err) {
		return err
	}
	for _, der := range l.certificates {
		hash, serial, err := promised(der, issuer)
		if err != nil {
			return err
		}
		index := slices.Index(leaves, hash)
		if index < 0 {
			return breaks(lost, "ct log: certificate %s has a promise and is not there", serial)
		}
		var answer struct {
			Index uint64   `json:"leaf_index"`
			Path  [][]byte `json:"audit_path"`
		}
		query := url.Values{"hash": {base64.StdEncoding.EncodeToString(hash[:])}, "tree_size": {fmt.Sprint(newest)}}
		if err := getJSON(ctx, client.HTTP, s.url+"/ctlog/ct/v1/get-proof-by-hash?"+query.Encode(), &answer); err != nil {
			return s.refuses(refusal, "asking for the proof of a certificate", err)
		}
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, answer.Index, newest, hash[:], answer.Path, roots[newest][:]); err != nil {
			return breaks(lost, "ct log: certificate %s is not proven: %v", serial, err)
		}
	}
	return s.consistent(l.ct, newest, func(first, last uint64) ([][]byte, error) {
		var answer struct {
			Hashes []string `json:"consistency"`
		}
		err := getJSON(ctx, client.HTTP, fmt.Sprintf("%s/ctlog/ct/v1/get-sth-consistency?first=%d&second=%d", s.url, first, last), &answer)
		return decodeAll(answer.Hashes, base64.StdEncoding.DecodeString, err)
	})
}

// promised is the leaf that the SCT in a certificate promises (RFC 6962 section
// 3.2).
func promised(der []byte, issuer *ctx509.Certificate) (hash [32]byte, serial string, err error) {
	cert, err := ctx509.ParseCertificate(der)
	if ctx509.IsFatal(err) {
		return hash, "", err
	}
	scts, err := ctx509util.ParseSCTsFromSCTList(&cert.SCTList)
	if err != nil || len(scts) != 1 {
		return hash, "", fmt.Errorf("%d embedded SCTs: %w", len(scts), err)
	}
	leaf, err := ct.MerkleTreeLeafForEmbeddedSCT([]*ctx509.Certificate{cert, issuer}, scts[0].Timestamp)
	if err != nil {
		return hash, "", err
	}
	hash, err = ct.LeafHashForLeaf(leaf)
	return hash, cert.SerialNumber.Text(16), err
}

// sameRoots compares what was published with what the leaves say.
func sameRoots(log string, derived [][32]byte, published heads) error {
	for size, root := range published {
		if size >= uint64(len(derived)) {
			return breaks(lost, "%s: %d leaves, but a tree of %d was published", log, len(derived)-1, size)
		}
		if derived[size] != root {
			return breaks(fork, "%s: root %x of size %d was published, but the leaves have %x", log, root, size, derived[size])
		}
	}
	return nil
}

// consistent asks the log to prove for itself that the newest tree extends some
// of the published ones.
func (s *stage) consistent(published heads, newest uint64, prove func(first, last uint64) ([][]byte, error)) error {
	sizes := slices.Sorted(maps.Keys(published))
	last := published[newest]
	for n := 1; n <= len(sizes); n *= 2 {
		size := sizes[len(sizes)-n]
		if size == 0 || size == newest {
			continue
		}
		hashes, err := prove(size, newest)
		if err != nil {
			return breaks(unexplained, "proof between %d and %d: %v", size, newest, err)
		}
		first := published[size]
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, size, newest, hashes, first[:], last[:]); err != nil {
			return breaks(fork, "%d and %d are not one history: %v", size, newest, err)
		}
	}
	return nil
}

func decodeAll(texts []string, decode func(string) ([]byte, error), err error) ([][]byte, error) {
	hashes := make([][]byte, len(texts))
	for i := range texts {
		if err == nil {
			hashes[i], err = decode(texts[i])
		}
	}
	return hashes, err
}

// examineAudit finds every certificate and every entry in the record.
func (s *stage) examineAudit() error {
	files, err := filepath.Glob(s.view("audit", "*.jsonl"))
	if err != nil {
		return err
	}
	certificates, entries := map[string]bool{}, map[string]bool{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		for line := range bytes.Lines(data) {
			var event struct {
				Type   string `json:"type"`
				Fields struct {
					SHA256 string `json:"sha256"`
					Entry  string `json:"entry"`
				} `json:"fields"`
			}
			if err := json.Unmarshal(line, &event); err != nil {
				return breaks(lost, "audit record: a line of %s is not JSON: %v", filepath.Base(f), err)
			}
			switch event.Type {
			case "issued":
				certificates[event.Fields.SHA256] = true
			case "appended":
				entries[event.Fields.Entry] = true
			}
		}
	}
	for _, der := range s.ledger.certificates {
		if sum := sha256Hex(der); !certificates[sum] {
			return breaks(lost, "audit record: no certificate with SHA-256 %s", sum)
		}
	}
	for _, e := range s.ledger.entries {
		if !entries[e.Entry.UUID] {
			return breaks(lost, "audit record: no entry %s", e.Entry.UUID)
		}
	}
	return nil
}

func firstCertificate(chain []byte) ([]byte, error) {
	block, _ := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("no certificate in PEM")
	}
	return block.Bytes, nil
}
