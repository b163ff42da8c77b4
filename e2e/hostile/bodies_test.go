// Package hostile shows that what is wrong is refused, with the right status
// and a reason, and that the instance is as well after it as before: malformed
// requests on every endpoint, forged and spent tokens, keys that are not the
// asker's.
package hostile

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

// endpoints take bodies.
var endpoints = []struct{ path, contentType string }{
	{"/api/v1/signingCert", "application/json"},
	{"/api/v2/signingCert", "application/json"},
	{"/api/v1/log/entries", "application/json"},
	{"/api/v1/log/entries/retrieve", "application/json"},
	{"/api/v1/index/retrieve", "application/json"},
	{"/api/v1/timestamp", "application/timestamp-query"},
	{"/api/v1/timestamp", "application/json"},
	{"/ctlog/ct/v1/add-chain", "application/json"},
	{"/ctlog/ct/v1/add-pre-chain", "application/json"},
	{"/oidc/token", "application/x-www-form-urlencoded"},
	{"/oidc/device/code", "application/x-www-form-urlencoded"},
}

// An answer is what came back.
type answer struct {
	status int
	body   string
}

func (a answer) String() string { return fmt.Sprintf("status %d: %.300s", a.status, a.body) }

// refused demands a client's error with a reason in it.
func (a answer) refused(t *testing.T) {
	t.Helper()
	if a.status < 400 || a.status > 499 {
		t.Errorf("want a status between 400 and 499: %v", a)
	}
	if strings.TrimSpace(a.body) == "" && a.status != http.StatusNotFound {
		t.Errorf("no reason is given: %v", a)
	}
	for _, leak := range []string{"goroutine ", "runtime error", ".go:"} {
		if strings.Contains(a.body, leak) {
			t.Errorf("the answer shows the inside: %v", a)
		}
	}
}

var client = &http.Client{
	Timeout:       30 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func do(t *testing.T, method, url string, header http.Header, body io.Reader) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return answer{resp.StatusCode, string(data)}
}

func post(t *testing.T, url, contentType string, body []byte) answer {
	t.Helper()
	return do(t, http.MethodPost, url, http.Header{"Content-Type": {contentType}}, bytes.NewReader(body))
}

// asksNothing holds the bodies that are searches without a question.
var asksNothing = map[string]bool{"{}": true, "null": true}

func TestMalformedBodies(t *testing.T) {
	i := e2etest.Quickstart(t)
	bodies := map[string][]byte{
		"empty":           nil,
		"an open brace":   []byte("{"),
		"truncated":       []byte(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"ha`),
		"null":            []byte("null"),
		"a list":          []byte("[]"),
		"a number":        []byte("1e999"),
		"an empty object": []byte("{}"),
		"wrong types":     []byte(`{"apiVersion":1,"kind":[],"spec":"x","credentials":7,"chain":"x","hash":{},"entryUUIDs":5,"logIndexes":"a"}`),
		"not UTF-8":       {0xff, 0xfe, 0x00, 0x01, 0x80},
		"deeply nested":   bytes.Repeat([]byte("["), 200_000),
		"nested objects":  bytes.Repeat([]byte(`{"a":`), 100_000),
		"ASN.1 of length": {0x30, 0x84, 0xff, 0xff, 0xff, 0xff},
		"a lone sequence": {0x30, 0x00},
		"truncated gzip":  {0x1f, 0x8b, 0x08, 0x00},
		"form":            []byte("grant_type=&client_id=%zz&scope=%00"),
	}
	for _, e := range endpoints {
		for name, body := range bodies {
			t.Run(e.path+" "+e.contentType+" "+name, func(t *testing.T) {
				a := post(t, i.URL+e.path, e.contentType, body)
				if asksNothing[string(body)] && a.status == http.StatusOK && strings.TrimSpace(a.body) == "[]" {
					return // a search for nothing finds nothing
				}
				a.refused(t)
			})
		}
		t.Run(e.path+" unknown content type", func(t *testing.T) {
			post(t, i.URL+e.path, "text/x-"+strings.Repeat("y", 2000), []byte("{}")).refused(t)
		})
	}
	i.Healthy(t)
}

// TestOversizedBodies sends more than any request may hold and looks at the
// memory that takes.
func TestOversizedBodies(t *testing.T) {
	i := e2etest.Quickstart(t)
	before := e2etest.RSS(t, i.PID())
	const size = 64 << 20
	for _, e := range endpoints {
		t.Run(e.path+" "+e.contentType, func(t *testing.T) {
			for name, prefix := range map[string]string{"a string": `{"kind":"`, "spaces": " "} {
				body := io.MultiReader(strings.NewReader(prefix), io.LimitReader(forever('a'), size))
				if a, gone := try(t, i.URL+e.path, http.Header{"Content-Type": {e.contentType}}, body); !gone {
					a.refused(t)
				} else {
					t.Logf("%s: the connection was closed while the body was sent", name)
				}
			}
			bomb := gzipBomb(t, size)
			header := http.Header{"Content-Type": {e.contentType}, "Content-Encoding": {"gzip"}}
			if a, gone := try(t, i.URL+e.path, header, bytes.NewReader(bomb)); !gone {
				a.refused(t)
			}
		})
	}
	i.Healthy(t)
	if after := e2etest.RSS(t, i.PID()); after > before+200<<20 {
		t.Errorf("resident memory grew from %d to %d MB", before>>20, after>>20)
	}
}

// try posts a body that the server may cut off: then there may be no answer.
func try(t *testing.T, url string, header http.Header, body io.Reader) (a answer, gone bool) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		if e, ok := err.(interface{ Timeout() bool }); ok && e.Timeout() {
			t.Fatalf("no answer: %v", err)
		}
		return answer{}, true
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // cut off, perhaps
	if len(data) == 0 {
		data = []byte("(cut off)")
	}
	return answer{resp.StatusCode, string(data)}, false
}

type forever byte

func (f forever) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(f)
	}
	return len(p), nil
}

func gzipBomb(t *testing.T, size int64) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.Copy(w, io.LimitReader(forever(' '), size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestOddRequests asks for what is not there, in ways that upstream's parsers
// have to survive.
func TestOddRequests(t *testing.T) {
	i := e2etest.Quickstart(t)
	for _, c := range []struct{ method, path string }{
		{"GET", "/api/v1/log/entries/zz"},
		{"GET", "/api/v1/log/entries/" + strings.Repeat("0", 64)},
		{"GET", "/api/v1/log/entries/" + strings.Repeat("f", 80)},
		{"GET", "/api/v1/log/entries?logIndex=-1"},
		{"GET", "/api/v1/log/entries?logIndex=abc"},
		{"GET", "/api/v1/log/entries?logIndex=9223372036854775807"},
		{"GET", "/api/v1/log/entries?logIndex=9223372036854775808"},
		{"GET", "/api/v1/log/entries"},
		{"GET", "/api/v1/log/proof?firstSize=5&lastSize=2"},
		{"GET", "/api/v1/log/proof?firstSize=0&lastSize=0"},
		{"GET", "/api/v1/log/proof?firstSize=1&lastSize=9223372036854775807"},
		{"GET", "/api/v1/log/proof?treeID=1&lastSize=1"},
		{"GET", "/ctlog/ct/v1/get-entries?start=-1&end=5"},
		{"GET", "/ctlog/ct/v1/get-entries?start=5&end=1"},
		{"GET", "/ctlog/ct/v1/get-entries?start=99999999&end=99999999999"},
		{"GET", "/ctlog/ct/v1/get-entries"},
		{"GET", "/ctlog/ct/v1/get-proof-by-hash?hash=%zz&tree_size=1"},
		{"GET", "/ctlog/ct/v1/get-proof-by-hash?hash=AAAA&tree_size=99999999"},
		{"GET", "/ctlog/ct/v1/get-sth-consistency?first=9&second=1"},
		{"GET", "/ctlog/ct/v1/get-entry-and-proof?leaf_index=99999&tree_size=99999"},
		{"GET", "/api/v1/timestamp"},
		{"PUT", "/api/v1/timestamp"},
		{"DELETE", "/api/v1/log/entries"},
		{"GET", "/api/v2/signingCert"},
		{"PUT", "/tuf/timestamp.json"},
		{"GET", "/tuf/99999.root.json"},
		{"GET", "/tuf/"},
		{"GET", "/tuf/..%2fkeys%2fpassphrase"},
		{"GET", "/tuf/%2e%2e/keys/passphrase"},
		{"GET", "/trust/..%2f..%2fsigbox.yaml"},
		{"GET", "/trust/../keys/rekor.pem"},
		{"GET", "/debug/pprof/"},
		{"GET", "/metrics"},
		{"POST", "/token"},
		{"GET", "/status"},
		{"GET", "/nothing/here"},
		{"GET", "/" + strings.Repeat("a/", 4000)},
		{"GET", "/oidc/auth?client_id=sigstore&redirect_uri=https://evil.example&response_type=code"},
		{"GET", "/oidc/callback"},
		{"GET", "/ci/nothing"},
	} {
		t.Run(c.method+" "+c.path[:min(60, len(c.path))], func(t *testing.T) {
			a := raw(t, i, c.method+" "+c.path+" HTTP/1.1\r\nHost: "+strings.TrimPrefix(i.URL, "http://")+"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			// A redirect to the same place spelled properly is no harm.
			if a.status >= 300 && a.status < 400 {
				return
			}
			a.refused(t)
			if strings.Contains(a.body, "PRIVATE KEY") || strings.Contains(a.body, "passphrase_file") {
				t.Errorf("a secret got out: %v", a)
			}
		})
	}
	i.Healthy(t)
}

// raw sends bytes that net/http's client would not.
func raw(t *testing.T, i *e2etest.Instance, request string) answer {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(i.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	if err != nil && len(data) == 0 {
		t.Fatal(err)
	}
	var a answer
	fmt.Sscanf(string(data), "HTTP/1.1 %d", &a.status)
	_, a.body, _ = strings.Cut(string(data), "\r\n\r\n")
	return a
}

// TestBrokenConnections leaves requests unfinished; the server must neither
// wait for ever nor mind.
func TestBrokenConnections(t *testing.T) {
	i := e2etest.Quickstart(t)
	host := strings.TrimPrefix(i.URL, "http://")
	for range 50 {
		for _, part := range []string{
			"", "POST", "POST /api/v1/log/entries HTTP/1.1\r\nHost: " + host + "\r\nContent-Length: 1000\r\n\r\n{",
			"GET / HTTP/9.9\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
			"POST /api/v2/signingCert HTTP/1.1\r\nHost: " + host + "\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
		} {
			c, err := net.Dial("tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, part)
			c.Close()
		}
	}
	i.Healthy(t)
}

func jsonBody(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestRestOfABodyIsNotARequest: what a handler leaves unread of a body must
// never be taken for the next request of the connection. Behind a proxy that
// shares connections it would be one, by a stranger, in another's name.
func TestRestOfABodyIsNotARequest(t *testing.T) {
	i := e2etest.Quickstart(t)
	host := strings.TrimPrefix(i.URL, "http://")
	smuggled := strings.Repeat("GET /healthz HTTP/1.1\r\nHost: "+host+"\r\n\r\n", 8)
	for _, e := range endpoints {
		for _, start := range []string{"{{", `{"a":}`, strings.Repeat(`{"a":`, 100_000), "grant_type=%zz&", "\x30\x84\xff\xff\xff\xff"} {
			// Large enough that the server gives the rest up.
			body := start + strings.Repeat("\r\n"+smuggled, 1500)
			t.Run(fmt.Sprintf("%s %s %.8q", e.path, e.contentType, start), func(t *testing.T) {
				conn, err := net.Dial("tcp", host)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(5 * time.Second))
				go func() {
					fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", e.path, host, e.contentType, len(body))
					io.WriteString(conn, body)
					conn.(*net.TCPConn).CloseWrite()
				}()
				data, _ := io.ReadAll(io.LimitReader(conn, 1<<20)) // reset, perhaps
				if n := bytes.Count(data, []byte("HTTP/1.1 ")); n > 1 {
					t.Errorf("%d answers to one request: %.700s", n, data)
				}
			})
		}
	}
	i.Healthy(t)
}
