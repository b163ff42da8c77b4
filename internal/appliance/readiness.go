package appliance

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/internal/front"
)

// Problem is a reason why a signature would fail now.
type Problem struct {
	Part   string `json:"part"`
	Reason string `json:"reason"`
}

// readiness gathers what must hold for a signature to succeed.
type readiness struct {
	checks []check
	space  *space
	record func(ctx context.Context) error // whether the audit record takes events
	// gate says why no write can be kept just now.
	gate func(ctx context.Context) error
}

type check struct {
	part string
	fn   func(ctx context.Context) error
}

func (r *readiness) add(part string, fn func(ctx context.Context) error) {
	r.checks = append(r.checks, check{part, fn})
}

// problems is empty when a signature would succeed.
func (r *readiness) problems(ctx context.Context) []Problem {
	list := []Problem{}
	for _, c := range r.checks {
		if err := c.fn(ctx); err != nil {
			list = append(list, Problem{c.part, err.Error()})
		}
	}
	return list
}

// readyHandler serves /readyz.
func (r *readiness) readyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), 5*time.Second)
		defer cancel()
		problems := r.problems(ctx)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if len(problems) > 0 {
			w.Header().Set("Retry-After", "5")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		answer := struct {
			Ready    bool      `json:"ready"`
			Problems []Problem `json:"problems,omitempty"`
		}{len(problems) == 0, problems}
		json.NewEncoder(w).Encode(answer) // a client that has gone hears nothing
	})
}

// healthHandler serves /healthz: the process answers.
func healthHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte("{\"alive\":true}\n"))
	})
}

// writable lets a write through only while there is somewhere to keep what it
// promises, and to put it on record, as a full disk found half-way through a
// commit is too late, and while nothing else speaks against it.
func (r *readiness) writable(h http.Handler, against ...func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			err := r.gate(req.Context())
			for _, check := range against {
				err = errors.Join(err, check())
			}
			if err == nil && r.record(req.Context()) != nil {
				err = errors.New("the audit record cannot be written")
			}
			if err != nil {
				w.Header().Set("Retry-After", "30")
				front.Error(w, http.StatusServiceUnavailable, "nothing is signed for now: "+err.Error())
				return
			}
		}
		h.ServeHTTP(w, req)
	})
}

// space watches the free bytes of the file systems that hold state.
type space struct {
	dirs []string
	min  int64

	mu   sync.Mutex
	at   time.Time
	last error
}

func (s *space) check(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.at) > time.Second || now.Before(s.at) {
		s.at, s.last = now, s.look()
	}
	return s.last
}

func (s *space) look() error {
	var errs []error
	for _, d := range s.dirs {
		var st syscall.Statfs_t
		if err := syscall.Statfs(d, &st); err != nil {
			errs = append(errs, fmt.Errorf("reading free space of %s: %w", filepath.Base(d), err))
			continue
		}
		if free := int64(st.Bavail) * st.Bsize; free < s.min {
			errs = append(errs, fmt.Errorf("the disk of folder %s has %d MiB free, less than the %d MiB it must have", filepath.Base(d), free>>20, s.min>>20))
		}
	}
	return errors.Join(errs...)
}

// chainCovers says whether every certificate of a chain is valid from now
// until a while later.
func chainCovers(chain []*x509.Certificate, now time.Time, until time.Duration) error {
	for _, c := range chain {
		switch {
		case now.Before(c.NotBefore):
			return fmt.Errorf("certificate %q is not valid before %s: is the clock right?", c.Subject.CommonName, c.NotBefore.Format(time.RFC3339))
		case now.Add(until).After(c.NotAfter):
			return fmt.Errorf("certificate %q expires at %s", c.Subject.CommonName, c.NotAfter.Format(time.RFC3339))
		}
	}
	return nil
}
