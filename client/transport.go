package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/sigbox/sigbox/internal/version"
)

const (
	// maxAnswer bounds what any service may answer with. The largest honest
	// answer is a log entry that holds an attestation.
	maxAnswer = 32 << 20
	// maxRequest bounds what is kept of a request for sending it again.
	maxRequest = 64 << 20
	// maxTries and maxWait bound how long an overloaded service is asked again.
	maxTries = 4
	maxWait  = 10 * time.Second
)

// transport is how every service of an instance is reached. It ends requests
// with ctx, since sigstore-go starts some without one; follows no redirect, so
// that a token only goes where the signing configuration says; bounds answers;
// and asks again when a service is overloaded.
type transport struct {
	ctx  context.Context
	base http.RoundTripper
}

// newBase makes the connections. With a CA, servers that it vouches for are
// trusted in addition to those of the system.
func newBase(caPEM []byte) (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = time.Minute
	t.TLSHandshakeTimeout = 15 * time.Second
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if len(caPEM) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(caPEM) {
			return nil, errors.New("the CA file holds no certificate in PEM form")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

func (t *transport) client() *http.Client {
	return &http.Client{
		Transport: t,
		Timeout:   2 * time.Minute,
		// RoundTrip refuses redirects already; this is for answers it lets pass.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(io.LimitReader(req.Body, maxRequest+1))
		if err = errors.Join(err, req.Body.Close()); err != nil {
			return nil, err
		}
		if len(body) > maxRequest {
			return nil, fmt.Errorf("request to %s is larger than %d bytes", req.URL.Host, maxRequest)
		}
	}
	for try := 1; ; try++ {
		resp, err := t.once(req, body)
		if err != nil {
			return nil, err
		}
		switch {
		case resp.StatusCode >= 300 && resp.StatusCode < 400 && resp.StatusCode != http.StatusNotModified:
			_ = resp.Body.Close()
			return nil, fmt.Errorf("%s redirects to %q, which is not followed", req.URL.Host, resp.Header.Get("Location"))
		case !overloaded(resp.StatusCode):
			return resp, nil
		case try == maxTries:
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
			_ = resp.Body.Close()
			return nil, &busyError{req.URL.Host, resp.StatusCode, string(bytes.TrimSpace(text))}
		}
		wait := retryAfter(resp.Header.Get("Retry-After"), try)
		_ = resp.Body.Close()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-t.ctx.Done():
			timer.Stop()
			return nil, context.Cause(t.ctx)
		case <-req.Context().Done():
			timer.Stop()
			return nil, context.Cause(req.Context())
		}
	}
}

func (t *transport) once(req *http.Request, body []byte) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stop := context.AfterFunc(t.ctx, func() { cancel(context.Cause(t.ctx)) })
	end := func() { stop(); cancel(nil) }
	again := req.Clone(ctx)
	again.Header.Set("User-Agent", "sigbox/"+version.Get().Version)
	if req.Body != nil {
		again.Body, again.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	resp, err := t.base.RoundTrip(again)
	if err != nil {
		end()
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer, end: end}
	return resp, nil
}

// overloaded are the answers after which asking again makes sense: nothing was
// done, or doing it twice is harmless.
func overloaded(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func retryAfter(header string, try int) time.Duration {
	if s, err := strconv.Atoi(header); err == nil && s >= 0 {
		return min(time.Duration(s)*time.Second, maxWait)
	}
	return min(250*time.Millisecond<<(try-1), maxWait)
}

// busyError is an overloaded service that stayed so.
type busyError struct {
	host   string
	status int
	text   string
}

func (e *busyError) Error() string {
	return fmt.Sprintf("%s answered %d %s to %d requests: %s", e.host, e.status, http.StatusText(e.status), maxTries, e.text)
}

// boundedBody fails where an endless answer would fill the memory.
type boundedBody struct {
	io.ReadCloser
	left int64
	end  func()
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// One more byte tells an answer of just this size from a longer one.
		n, err := b.ReadCloser.Read(make([]byte, 1))
		if n > 0 {
			return 0, fmt.Errorf("answer is larger than %d bytes", maxAnswer)
		}
		return 0, err
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (b *boundedBody) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// get reads one document with a limit.
func (t *transport) get(url string, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(t.ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.client().Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &StatusError{URL: url, Status: resp.StatusCode}
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", url, limit)
	}
	return data, nil
}

// StatusError is an answer other than the wanted one.
type StatusError struct {
	URL    string
	Status int
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answered %d %s", e.URL, e.Status, http.StatusText(e.Status))
}
