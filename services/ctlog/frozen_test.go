package ctlog_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sigbox/sigbox/services/ctlog"
)

// A frozen log is read on, and no promise and no tree head is signed.
func TestFrozen(t *testing.T) {
	var frozen atomic.Bool
	c := newCA(t)
	server, id := logServer(t)
	l := &log{t: t, key: newKey(t)}
	var err error
	l.Service, err = ctlog.New(context.Background(), ctlog.Config{
		TreeID: id, Signer: l.key, Roots: []*x509.Certificate{c.root}, Log: server, Dir: t.TempDir(), Logger: quiet,
		Frozen: func() error {
			if frozen.Load() {
				return errors.New("the log is frozen: an older copy")
			}
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(l.Handler())
	defer srv.Close()
	l.url = srv.URL + ctlog.Prefix
	leaf := submission(c.chain(c.leaf(x509.ExtKeyUsageCodeSigning))...)
	if code, body, _ := l.post("/ct/v1/add-chain", leaf); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	if _, err := l.client().GetSTH(t.Context()); err != nil {
		t.Fatal(err)
	}

	frozen.Store(true)
	for _, path := range []string{"/ct/v1/add-chain", "/ct/v1/add-pre-chain"} {
		if code, body, header := l.post(path, leaf); code != http.StatusServiceUnavailable || !strings.Contains(body, "older copy") || header.Get("Retry-After") != "60" {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	// Also one over a tree whose signature is remembered.
	if _, err := l.client().GetSTH(t.Context()); err == nil {
		t.Error("a tree head was signed")
	}
	if entries, err := l.client().GetRawEntries(t.Context(), 0, 0); err != nil || len(entries.Entries) != 1 {
		t.Errorf("reading: %v", err)
	}
	if _, err := l.client().GetAcceptedRoots(t.Context()); err != nil {
		t.Errorf("reading the roots: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	<-l.Ready()
	cancel()
	if err := <-ran; err != nil {
		t.Errorf("run: %v", err)
	}
}
