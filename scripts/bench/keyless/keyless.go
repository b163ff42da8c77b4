// Package keyless signs through any Sigstore instance in plain HTTP, with
// nothing between the measurement and the wire: one request for the
// certificate, one for the log, one for the timestamp. Checks are
// sigstore-go's.
package keyless

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"time"
)

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 4 << 20

// Services are the base URLs of an instance's parts. One origin may serve all.
type Services struct {
	Fulcio string
	Rekor  string // version 1 of its API
	TSA    string // empty: no timestamp is asked for
}

// A Client signs. It may be used by many goroutines.
type Client struct {
	Services Services
	Token    TokenSource
	HTTP     *http.Client
}

// NewClient keeps as many connections open as there are workers.
func NewClient(services Services, token TokenSource, workers int) *Client {
	return &Client{
		Services: services,
		Token:    token,
		HTTP: &http.Client{
			Timeout: time.Minute,
			Transport: &http.Transport{
				Proxy:               http.ProxyFromEnvironment,
				MaxIdleConns:        4 * workers,
				MaxIdleConnsPerHost: 4 * workers,
				DisableCompression:  true,
			},
		},
	}
}

// Parts are the durations of one signature. Total is more than their sum: the
// key pair and the signature itself are made in between.
type Parts struct {
	Token       time.Duration
	Certificate time.Duration // the SCT is in it
	Log         time.Duration // until the inclusion proof is there
	Timestamp   time.Duration
	Total       time.Duration
}

// A Signature is one over a digest, with all that an offline verifier needs.
type Signature struct {
	Digest      [sha256.Size]byte
	Signature   []byte   // ASN.1
	Certificate []byte   // DER
	Entry       LogEntry // as the log answered
	Timestamp   []byte   // RFC 3161 response in DER; nil without a TSA
	Parts       Parts
}

// Sign signs a digest with a fresh key. Nothing is verified here but that each
// answer has what the next step needs; see Verifier.
func (c *Client) Sign(ctx context.Context, digest [sha256.Size]byte) (*Signature, error) {
	s := &Signature{Digest: digest}
	began := time.Now()
	lap := began
	part := func(d *time.Duration) {
		now := time.Now()
		*d, lap = now.Sub(lap), now
	}

	token, err := c.Token(ctx)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	part(&s.Parts.Token)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if s.Certificate, err = c.Certificate(ctx, token, key); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	part(&s.Parts.Certificate)

	if s.Signature, err = ecdsa.SignASN1(rand.Reader, key, digest[:]); err != nil {
		return nil, err
	}
	if s.Entry, err = c.Log(ctx, s.Digest, s.Signature, s.Certificate); err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	part(&s.Parts.Log)

	if c.Services.TSA != "" {
		if s.Timestamp, err = c.Timestamp(ctx, s.Signature); err != nil {
			return nil, fmt.Errorf("timestamp: %w", err)
		}
		part(&s.Parts.Timestamp)
	}
	s.Parts.Total = time.Since(began)
	return s, nil
}

// A StatusError is an answer that is not the one hoped for.
type StatusError struct {
	Code int
	Body string // its beginning
}

func (e *StatusError) Error() string { return fmt.Sprintf("status %d: %s", e.Code, e.Body) }

func (c *Client) post(ctx context.Context, url, contentType string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusCreated {
		return nil, &StatusError{Code: resp.StatusCode, Body: string(data[:min(len(data), 500)])}
	}
	return data, nil
}
