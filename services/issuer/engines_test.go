package issuer_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sigbox/sigbox/services/issuer"
)

// onEngines runs a test with the issuer for jobs on each storage.
func onEngines(t *testing.T, test func(t *testing.T, newCI func(testing.TB) (*issuer.CI, issuer.CIConfig))) {
	t.Run("journal", func(t *testing.T) { test(t, newCI) })
	t.Run("postgres", func(t *testing.T) {
		test(t, func(t testing.TB) (*issuer.CI, issuer.CIConfig) {
			cfg := issuer.CIConfig{URL: "http://127.0.0.1:8080/ci", Signer: rsa2048(t), Postgres: issuer.NewDatabase(t)}
			return openCI(t, cfg), cfg
		})
	})
}

// Of two replicas one redeems a token.
func TestRedeemOnReplicas(t *testing.T) {
	cfg := issuer.CIConfig{URL: "http://127.0.0.1:8080/ci", Signer: rsa2048(t), Postgres: issuer.NewDatabase(t)}
	replicas := []*issuer.CI{openCI(t, cfg), openCI(t, cfg)}
	var won atomic.Int32
	var wg sync.WaitGroup
	const tokens = 40
	for range tokens {
		jti, token := mint(t, replicas[0])
		for _, c := range replicas {
			wg.Go(func() {
				if err := c.Redeem(t.Context(), jti, token.Expiry); err == nil {
					won.Add(1)
				} else if !errors.Is(err, issuer.ErrReplayed) {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if won.Load() != tokens {
		t.Errorf("%d tokens were redeemed %d times", tokens, won.Load())
	}
}

// Two replicas serve one issuer for people: what one signs the other's keys
// verify.
func TestPeopleOnReplicas(t *testing.T) {
	a := newOrigin(t)
	cfg := peopleConfig(t, a)
	cfg.Dir, cfg.Postgres = "", issuer.NewDatabase(t)
	first := openPeople(t, a, cfg)
	_, c := client(t, a)
	raw := passwordToken(t, c)
	second := openPeople(t, a, cfg) // takes over the origin
	provider, c := client(t, a)
	verify(t, provider, raw)
	if kid(t, passwordToken(t, c)) != kid(t, raw) {
		t.Error("the replicas sign with different keys")
	}
	for _, p := range []*issuer.People{first, second} {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
