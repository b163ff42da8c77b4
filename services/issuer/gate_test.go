package issuer

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// The table of throttled keys stays bounded, and someone who fills it does not
// thereby free the key that failed most.
func TestThrottleBounded(t *testing.T) {
	now := time.Now()
	th := newThrottle(2, time.Hour, func() time.Time { return now })
	exhaust := func(key string) {
		for range 2 {
			if done, ok := th.begin(key); ok {
				done(false)
			}
		}
	}
	exhaust("victim")
	for n := range 3 * maxThrottled {
		done, ok := th.begin(fmt.Sprint(n))
		if !ok {
			t.Fatalf("key %d is refused at its first attempt", n)
		}
		done(false)
	}
	if len(th.keys) > maxThrottled {
		t.Errorf("%d keys are remembered", len(th.keys))
	}
	if _, ok := th.begin("victim"); ok {
		t.Error("the exhausted key was forgotten")
	}
	now = now.Add(time.Hour)
	if done, ok := th.begin("victim"); !ok {
		t.Error("the allowance does not come back")
	} else {
		done(false)
	}
}

// Refusing an unknown address costs the comparison that a known one costs.
func TestStrangerHash(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("x"), 11)
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDirectory(nil, []User{{Email: "a@example.com", PasswordHash: string(hash)}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := d.GetPassword(t.Context(), "stranger@example.com")
	if err != nil {
		t.Fatal(err)
	}
	if cost, err := bcrypt.Cost(p.Hash); err != nil || cost != 11 {
		t.Errorf("cost %d, %v", cost, err)
	}
	if err := bcrypt.CompareHashAndPassword(p.Hash, []byte("x")); !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		t.Errorf("comparing: %v", err)
	}
}

func TestPanicContained(t *testing.T) {
	g := &gate{logger: slog.New(slog.DiscardHandler)}
	w := httptest.NewRecorder()
	g.contain("", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })).
		ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if w.Code != http.StatusInternalServerError {
		t.Error(w.Code)
	}
}

func TestNetwork(t *testing.T) {
	g := &gate{}
	for from, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[::ffff:192.0.2.7]:1": "192.0.2.7",
		"[fe80::1%eth0]:1": "fe80::/64", "in-process": "",
	} {
		if got := g.network(&http.Request{RemoteAddr: from}); got != want {
			t.Errorf("%s: %q, want %q", from, got, want)
		}
	}
}
