package hostile

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

func b64(data []byte) string { return base64.StdEncoding.EncodeToString(data) }

func newKey(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func sign(t *testing.T, key *ecdsa.PrivateKey, data []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(data)
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func hashedRekord(digest, signature, key string) string {
	return fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"%s"}},"signature":{"content":"%s","publicKey":{"content":"%s"}}}}`, digest, signature, key)
}

// TestEntriesThatAreNotTrue: the log takes nothing that it cannot check.
func TestEntriesThatAreNotTrue(t *testing.T) {
	i := e2etest.Quickstart(t)
	key, public := newKey(t)
	_, other := newKey(t)
	data := []byte("data")
	sig := sign(t, key, data)
	digest := fmt.Sprintf("%x", sha256.Sum256(data))
	elsewhere := fmt.Sprintf("%x", sha256.Sum256([]byte("something else")))
	spoiled := append([]byte{}, sig...)
	spoiled[len(spoiled)-1] ^= 1

	url := i.URL + "/api/v1/log/entries"
	for name, body := range map[string]string{
		"signature over something else": hashedRekord(elsewhere, b64(sig), b64(public)),
		"another's key":                 hashedRekord(digest, b64(sig), b64(other)),
		"spoiled signature":             hashedRekord(digest, b64(spoiled), b64(public)),
		"no signature":                  hashedRekord(digest, "", b64(public)),
		"no key":                        hashedRekord(digest, b64(sig), ""),
		"a digest that is too short":    hashedRekord(digest[:10], b64(sig), b64(public)),
		"a key that is not one":         hashedRekord(digest, b64(sig), b64([]byte("key"))),
		"unknown kind":                  `{"apiVersion":"0.0.1","kind":"nope","spec":{}}`,
		"unknown version":               strings.Replace(hashedRekord(digest, b64(sig), b64(public)), "0.0.1", "9.9.9", 1),
		"a kind without a spec":         `{"apiVersion":"0.0.1","kind":"dsse"}`,
		"dsse without signatures":       `{"apiVersion":"0.0.1","kind":"dsse","spec":{"proposedContent":{"envelope":"{\"payload\":\"e30=\",\"payloadType\":\"x\",\"signatures\":[]}","verifiers":["` + b64(public) + `"]}}}`,
		"dsse that is not JSON":         `{"apiVersion":"0.0.1","kind":"dsse","spec":{"proposedContent":{"envelope":"{{{","verifiers":["` + b64(public) + `"]}}}`,
		"intoto with nothing in it":     `{"apiVersion":"0.0.2","kind":"intoto","spec":{"content":{"envelope":{"payloadType":"application/vnd.in-toto+json","signatures":[{}]}}}}`,
		"empty cose":                    `{"apiVersion":"0.0.1","kind":"cose","spec":{"message":"","publicKey":"` + b64(public) + `","data":{}}}`,
	} {
		t.Run(name, func(t *testing.T) { post(t, url, "application/json", []byte(body)).refused(t) })
	}
	t.Run("true, after all", func(t *testing.T) {
		if a := post(t, url, "application/json", []byte(hashedRekord(digest, b64(sig), b64(public)))); a.status != http.StatusCreated {
			t.Fatal(a)
		}
	})
	t.Run("once more", func(t *testing.T) {
		if a := post(t, url, "application/json", []byte(hashedRekord(digest, b64(sig), b64(public)))); a.status != http.StatusConflict {
			t.Fatalf("want 409: %v", a)
		}
	})
	i.Healthy(t)
}

// TestEntriesByURL: an entry that names its parts by URL would have the log
// fetch them for a stranger.
func TestEntriesByURL(t *testing.T) {
	i := e2etest.Quickstart(t)
	var asked atomic.Int64
	bait := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	defer bait.Close()
	key, public := newKey(t)
	data := []byte("data")
	sig := b64(sign(t, key, data))
	for name, body := range map[string]string{
		"data": fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"rekord","spec":{"data":{"url":"%s"},"signature":{"format":"x509","content":"%s","publicKey":{"content":"%s"}}}}`, bait.URL, sig, b64(public)),
		"key":  fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"rekord","spec":{"data":{"content":"%s"},"signature":{"format":"x509","content":"%s","publicKey":{"url":"%s"}}}}`, b64(data), sig, bait.URL),
	} {
		t.Run(name, func(t *testing.T) { post(t, i.URL+"/api/v1/log/entries", "application/json", []byte(body)).refused(t) })
	}
	t.Run("search", func(t *testing.T) {
		post(t, i.URL+"/api/v1/index/retrieve", "application/json", []byte(`{"publicKey":{"format":"x509","url":"`+bait.URL+`"}}`)).refused(t)
	})
	if n := asked.Load(); n > 0 {
		t.Errorf("the log fetched %d times from where a stranger pointed it", n)
	}
	i.Healthy(t)
}

// TestForeignChains: the CT log takes only what our own CA issued.
func TestForeignChains(t *testing.T) {
	i := e2etest.Quickstart(t)
	key, _ := newKey(t)
	template := &x509.Certificate{SerialNumber: bigOne, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"add-chain", "add-pre-chain"} {
		t.Run(path, func(t *testing.T) {
			post(t, i.URL+"/ctlog/ct/v1/"+path, "application/json", []byte(`{"chain":["`+b64(der)+`"]}`)).refused(t)
		})
	}
	i.Healthy(t)
}

// TestOddTimestampRequests: the timestamp authority answers only what RFC 3161
// asks.
func TestOddTimestampRequests(t *testing.T) {
	i := e2etest.Quickstart(t)
	for name, body := range map[string][]byte{
		"giant OID":         giantOIDRequest(),
		"random":            append([]byte{0x30, 0x82, 0x01, 0x00}, make([]byte, 256)...),
		"json without hash": []byte(`{"hashAlgorithm":"sha256"}`),
		"json with md5":     []byte(`{"artifactHash":"AAAA","hashAlgorithm":"md5"}`),
	} {
		t.Run(name, func(t *testing.T) {
			contentType := "application/timestamp-query"
			if body[0] == '{' {
				contentType = "application/json"
			}
			post(t, i.URL+"/api/v1/timestamp", contentType, body).refused(t)
		})
	}
	i.Healthy(t)
}
