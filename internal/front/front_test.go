package front

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func newServer(t *testing.T, routes map[string]http.Handler, inFlight, queued int) *Server {
	t.Helper()
	s, err := New(Config{
		Routes: routes, MaxBodyBytes: 100, MaxInFlight: inFlight, MaxQueued: queued, DrainTimeout: 5 * time.Second,
		Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContainsAndBounds(t *testing.T) {
	s := newServer(t, map[string]http.Handler{
		"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") }),
		"/echo/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				Error(w, http.StatusRequestEntityTooLarge, "too large")
			}
		}),
	}, 2, 2)
	for _, tc := range []struct {
		method, path string
		body         io.Reader
		status       int
	}{
		{"GET", "/panic", nil, 500},
		{"GET", "/none", nil, 404},
		{"POST", "/echo/a", strings.NewReader("ok"), 200},
		{"POST", "/echo/a", strings.NewReader(strings.Repeat("x", 101)), 413},
		{"POST", "/echo/a", io.MultiReader(strings.NewReader(strings.Repeat("x", 101))), 413}, // length unknown
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, tc.body))
		if w.Code != tc.status {
			t.Errorf("%s %s: %d, want %d", tc.method, tc.path, w.Code, tc.status)
		}
	}
}

func TestBurstIsTurnedAwayWithRetryAfter(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	s := newServer(t, map[string]http.Handler{"/w": http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-release
	})}, 1, 1)
	var wg sync.WaitGroup
	post := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("POST", "/w", nil))
		return w
	}
	wg.Go(func() { post() })
	<-entered
	wg.Go(func() { post() })
	for deadline := time.Now().Add(5 * time.Second); len(s.queued) < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the second write never queued")
		}
	}
	if w := post(); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("third write: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	close(release)
	wg.Wait()
	if w := post(); w.Code != 200 {
		t.Errorf("after the burst: %d", w.Code)
	}
}

// TestRestOfABodyIsNotARequest: a handler that closes a body it has not read
// ends the connection, since what is left of the body is on it.
func TestRestOfABodyIsNotARequest(t *testing.T) {
	s := newServer(t, map[string]http.Handler{"/w": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body.Close()
		w.WriteHeader(http.StatusBadRequest)
	})}, 1, 1)
	s.cfg.MaxBodyBytes = 10 << 20
	srv := httptest.NewServer(s)
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	rest := strings.Repeat("GET /w HTTP/1.1\r\nHost: x\r\n\r\n", 30_000)
	go func() {
		fmt.Fprintf(conn, "POST /w HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(rest), rest)
	}()
	got, _ := io.ReadAll(conn) // reset, once the server has closed
	if n := strings.Count(string(got), "HTTP/1.1 "); n > 1 {
		t.Errorf("%d answers to one request", n)
	}
}

func TestDrain(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	s := newServer(t, map[string]http.Handler{"/slow": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		w.Write([]byte("done"))
	})}, 1, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx, l) }()
	got := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + l.Addr().String() + "/slow")
		if err != nil {
			got <- err.Error()
			return
		}
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	<-entered
	cancel()
	close(release)
	if s := <-got; s != "done" {
		t.Errorf("the request under way got %q", s)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
}
