package fulcio_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/services/fulcio"
)

// BenchmarkIssue is a whole certificate: token verified, precertificate linted,
// signed and logged, certificate linted and signed. The record is left out,
// because it is a disk's business.
func BenchmarkIssue(b *testing.B) {
	p := newIDP(b, nil)
	in := newInstance(b, withIssuers(p.issuer("email")), func(c *fulcio.Config) {
		c.Audit = func(context.Context, audit.Event) error { return nil }
	})
	request := csr(b, p.token(nil), newKey(b))
	for b.Loop() {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/api/v2/signingCert", bytes.NewReader(request))
		r.Header.Set("Content-Type", "application/json")
		in.handler.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
