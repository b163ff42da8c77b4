package ctlog

import (
	"crypto"
	"io"
	"net/http"
)

// guardedSigner signs nothing while the log is frozen, whoever asks.
type guardedSigner struct {
	crypto.Signer
	frozen func() error
}

func (s guardedSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.frozen(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(rand, digest, opts)
}

// signs are the requests that are answered with a signature: a promise to log,
// or a tree head.
var signs = map[string]bool{
	Prefix + "/ct/v1/add-chain":     true,
	Prefix + "/ct/v1/add-pre-chain": true,
	Prefix + "/ct/v1/get-sth":       true,
}

// readOnly refuses what would be signed while the log is frozen. Entries and
// proofs are served on.
func readOnly(next http.Handler, frozen func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if signs[r.URL.Path] {
			if err := frozen(); err != nil {
				// It ends with an operator's work and a restart.
				w.Header().Set("Retry-After", "60")
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}
