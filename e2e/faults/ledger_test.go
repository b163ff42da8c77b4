package faults

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

const subject = "fault@example.com"

// A ledger is what clients were told and can hold the instance to: certificates,
// entries, and every signed tree head. It also keeps what they were refused, and
// how.
type ledger struct {
	keys *logKeys

	mu           sync.Mutex
	certificates [][]byte // DER
	entries      []*keyless.Signature
	rekor, ct    heads
	spent        string // a token that bought a certificate after the last start
	refusals     map[string]int
	overloaded   int   // answers 503 with Retry-After
	contradicted error // two heads that cannot both be true
	unexplained  error // an answer that no fault excuses
}

// heads are published roots by tree size.
type heads map[uint64][32]byte

func newLedger(keys *logKeys) *ledger {
	return &ledger{keys: keys, rekor: heads{}, ct: heads{}, refusals: map[string]int{}}
}

// copied is a ledger of its own that begins with what this one holds.
func (l *ledger) copied() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledger{
		keys: l.keys, certificates: slices.Clone(l.certificates), entries: slices.Clone(l.entries),
		rekor: maps.Clone(l.rekor), ct: maps.Clone(l.ct), refusals: map[string]int{},
	}
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// saw writes a published head down. A second root for a size is a fork.
func (l *ledger) saw(log heads, h head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if was, ok := log[h.size]; ok && was != h.root && l.contradicted == nil {
		l.contradicted = fmt.Errorf("%s: two roots of size %d: %x and %x", h.log, h.size, was, h.root)
	}
	log[h.size] = h.root
}

// RoundTrip sends a request and writes down how it was refused, if it was.
func (l *ledger) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := transport.RoundTrip(req)
	if err != nil || resp.StatusCode < 300 {
		return resp, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	resp.Body.Close()
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals[fmt.Sprintf("%s %d: %.200s", req.URL.Path, resp.StatusCode, body)]++
	switch {
	case err != nil:
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "":
		l.overloaded++
	case resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests:
		l.unexplained = fmt.Errorf("%s blames the client: %s: %.200s", req.URL.Path, resp.Status, body)
	case len(body) == 0:
		l.unexplained = fmt.Errorf("%s gives no reason: %s", req.URL.Path, resp.Status)
	}
	return resp, nil
}

// transport is shared: a connection to a process that has ended is not taken
// again.
var transport = &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true, ResponseHeaderTimeout: 30 * time.Second}

// signer is a client of the instance in dir that writes down what it is told.
type signer struct {
	*keyless.Client
	ledger *ledger
	url    string
}

func (s *stage) signer(workers int) *signer {
	c := keyless.NewClient(keyless.Services{Fulcio: s.url, Rekor: s.url},
		keyless.SocketTokens(filepath.Join(s.dir, "run", "admin.sock"), subject, workers), workers)
	c.HTTP = &http.Client{Timeout: 30 * time.Second, Transport: s.ledger}
	return &signer{c, s.ledger, s.url}
}

// sign makes one signature. What was acknowledged before it failed counts.
func (s *signer) sign(ctx context.Context) error {
	token, err := s.Token(ctx)
	if err != nil {
		return fmt.Errorf("token: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	sig := new(keyless.Signature)
	if sig.Certificate, err = s.Certificate(ctx, token, key); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	l := s.ledger
	l.mu.Lock()
	l.certificates, l.spent = append(l.certificates, sig.Certificate), token
	l.mu.Unlock()
	rand.Read(sig.Digest[:])
	if sig.Signature, err = ecdsa.SignASN1(rand.Reader, key, sig.Digest[:]); err != nil {
		return err
	}
	if sig.Entry, err = s.Log(ctx, sig.Digest, sig.Signature, sig.Certificate); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	h, err := l.keys.checkpoint(sig.Entry.Verification.InclusionProof.Checkpoint)
	l.mu.Lock()
	l.entries = append(l.entries, sig)
	if err != nil {
		l.contradicted = err
	}
	l.mu.Unlock()
	if err == nil {
		l.saw(l.rekor, h)
	}
	return nil
}

// watch writes down one head of each log.
func (s *signer) watch(ctx context.Context) error {
	for _, log := range []struct {
		seen heads
		read func(context.Context, *http.Client, string, *logKeys) (head, error)
	}{{s.ledger.rekor, rekorHead}, {s.ledger.ct, ctHead}} {
		h, err := log.read(ctx, s.HTTP, s.url, s.ledger.keys)
		var forged *forgery
		if errors.As(err, &forged) {
			s.ledger.mu.Lock()
			s.ledger.contradicted = err
			s.ledger.mu.Unlock()
		}
		if err != nil {
			return err
		}
		s.ledger.saw(log.seen, h)
	}
	return nil
}

// load signs with some workers until so many entries are acknowledged, or each
// worker has been refused three times, or the process has gone, and returns when
// that is over.
func (s *stage) load(ctx context.Context, workers, more int) {
	client := s.signer(workers)
	enough := s.ledger.count() + more
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	defer context.AfterFunc(s.life(), cancel)()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for failed := 0; failed < 3 && s.ledger.count() < enough && ctx.Err() == nil; {
				if client.sign(ctx) != nil {
					failed++
				}
				client.watch(ctx)
			}
		})
	}
	wg.Wait()
}

// getJSON reads a JSON document.
func getJSON(ctx context.Context, c *http.Client, url string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &keyless.StatusError{Code: resp.StatusCode, Body: fmt.Sprintf("%.300s", data)}
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	return nil
}
