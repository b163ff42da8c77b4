package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

// A plan is what to measure.
type plan struct {
	warmup     int           // signatures before anything is measured
	sequential int           // signatures, one after the other
	workers    []int         // concurrent signers, one measurement each
	duration   time.Duration // of each of those
}

func planFlags(f *flag.FlagSet, p *plan) {
	p.workers = []int{16, 128}
	f.IntVar(&p.warmup, "warmup", 20, "signatures before anything is measured")
	f.IntVar(&p.sequential, "sequential", 200, "signatures, one after the other")
	f.DurationVar(&p.duration, "duration", 15*time.Second, "of each measurement with concurrent workers")
	f.Func("workers", "numbers of concurrent workers (default 16,128)", func(s string) error {
		p.workers = nil
		for field := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(field)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is not a number of workers", field)
			}
			p.workers = append(p.workers, n)
		}
		return nil
	})
}

func (p *plan) maxWorkers() int { return max(1, slices.Max(append([]int{1}, p.workers...))) }

// Milliseconds is how durations are reported.
type Milliseconds float64

func ms(d time.Duration) Milliseconds { return Milliseconds(float64(d) / float64(time.Millisecond)) }

// Quantiles of a duration.
type Quantiles struct {
	P50 Milliseconds `json:"p50_ms"`
	P95 Milliseconds `json:"p95_ms"`
}

func quantiles(durations []time.Duration) Quantiles {
	if len(durations) == 0 {
		return Quantiles{}
	}
	d := slices.Sorted(slices.Values(durations))
	at := func(q float64) Milliseconds { return ms(d[min(len(d)-1, int(q*float64(len(d))))]) }
	return Quantiles{P50: at(0.50), P95: at(0.95)}
}

// Sequential is one signature after the other. Total includes the
// verification.
type Sequential struct {
	Signatures  int       `json:"signatures"`
	Token       Quantiles `json:"token"`
	Certificate Quantiles `json:"certificate"`
	Log         Quantiles `json:"log"`
	Timestamp   Quantiles `json:"timestamp"`
	Verify      Quantiles `json:"verify"`
	Total       Quantiles `json:"total"`
}

// Concurrent is a number of workers signing as fast as they are answered.
type Concurrent struct {
	Workers    int       `json:"workers"`
	Seconds    float64   `json:"seconds"`
	Signatures int       `json:"signatures"`
	PerSecond  float64   `json:"per_second"`
	Latency    Quantiles `json:"latency"`
	Errors     int       `json:"errors"`
	FirstError string    `json:"first_error,omitempty"`
	// What the server's process spent; absent for a server elsewhere.
	CPUPerSignature Milliseconds `json:"server_cpu_ms_per_signature,omitempty"`
	PeakRSS         int64        `json:"server_rss_peak_bytes,omitempty"`
}

// Verification is offline, of what the other measurements signed.
type Verification struct {
	Signatures int     `json:"signatures"`
	Goroutines int     `json:"goroutines"`
	PerSecond  float64 `json:"per_second"`
}

// Load is what the load generator finds.
type Load struct {
	Sequential   Sequential     `json:"sequential"`
	Concurrent   []Concurrent   `json:"concurrent"`
	Verification []Verification `json:"verification"`
	// CPUPerSignature is of the sequential signatures.
	CPUPerSignature Milliseconds `json:"server_cpu_ms_per_signature_sequential,omitempty"`
}

// measure carries the plan out. Every signature is verified: the sequential
// ones as part of the measurement, the others after it, so that the verifier
// does not compete with the server for processors. One that does not verify is
// an error. server may be nil.
func (p *plan) measure(ctx context.Context, client *keyless.Client, verifier *keyless.Verifier, server *process) (*Load, error) {
	for range p.warmup {
		s, err := client.Sign(ctx, newDigest())
		if err != nil {
			return nil, fmt.Errorf("warming up: %w", err)
		}
		if err := verifier.Verify(s); err != nil {
			return nil, fmt.Errorf("warming up: verifying: %w", err)
		}
	}
	var load Load
	used := server.cpu()
	signed, err := p.one(ctx, client, verifier, &load.Sequential)
	if err != nil {
		return nil, err
	}
	if server != nil && p.sequential > 0 {
		load.CPUPerSignature = ms(server.cpu()-used) / Milliseconds(p.sequential)
	}
	for _, n := range p.workers {
		c, more := p.many(ctx, client, n, server)
		load.Concurrent = append(load.Concurrent, c)
		signed = append(signed, more...)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for _, n := range []int{1, runtime.GOMAXPROCS(0)} {
		v, err := verifyAll(verifier, signed, n)
		if err != nil {
			return nil, err
		}
		load.Verification = append(load.Verification, v)
	}
	return &load, nil
}

func (p *plan) one(ctx context.Context, client *keyless.Client, verifier *keyless.Verifier, out *Sequential) ([]*keyless.Signature, error) {
	var signed []*keyless.Signature
	var token, certificate, log, timestamp, check, total []time.Duration
	for range p.sequential {
		s, err := client.Sign(ctx, newDigest())
		if err != nil {
			return nil, err
		}
		began := time.Now()
		if err := verifier.Verify(s); err != nil {
			return nil, fmt.Errorf("verifying: %w", err)
		}
		verified := time.Since(began)
		signed = append(signed, s)
		token = append(token, s.Parts.Token)
		certificate = append(certificate, s.Parts.Certificate)
		log = append(log, s.Parts.Log)
		timestamp = append(timestamp, s.Parts.Timestamp)
		check = append(check, verified)
		total = append(total, s.Parts.Total+verified)
	}
	*out = Sequential{
		Signatures: len(signed),
		Token:      quantiles(token), Certificate: quantiles(certificate), Log: quantiles(log),
		Timestamp: quantiles(timestamp), Verify: quantiles(check), Total: quantiles(total),
	}
	return signed, nil
}

func (p *plan) many(ctx context.Context, client *keyless.Client, workers int, server *process) (Concurrent, []*keyless.Signature) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu     sync.Mutex
		signed []*keyless.Signature
		errs   int
		first  string
		stop   atomic.Bool
		wg     sync.WaitGroup
	)
	peak := server.watchRSS(ctx)
	used, began := server.cpu(), time.Now()
	time.AfterFunc(p.duration, func() { stop.Store(true) })
	for range workers {
		wg.Go(func() {
			var mine []*keyless.Signature
			for !stop.Load() && ctx.Err() == nil {
				s, err := client.Sign(ctx, newDigest())
				if err != nil {
					mu.Lock()
					if errs++; first == "" {
						first = err.Error()
					}
					mu.Unlock()
					continue
				}
				mine = append(mine, s)
			}
			mu.Lock()
			signed = append(signed, mine...)
			mu.Unlock()
		})
	}
	wg.Wait()
	took := time.Since(began)
	spent := server.cpu() - used
	cancel()

	latencies := make([]time.Duration, len(signed))
	for i, s := range signed {
		latencies[i] = s.Parts.Total
	}
	c := Concurrent{
		Workers: workers, Seconds: took.Seconds(), Signatures: len(signed),
		PerSecond: float64(len(signed)) / took.Seconds(), Latency: quantiles(latencies),
		Errors: errs, FirstError: first, PeakRSS: peak(),
	}
	if server != nil && len(signed) > 0 {
		c.CPUPerSignature = ms(spent) / Milliseconds(len(signed))
	}
	return c, signed
}

func verifyAll(verifier *keyless.Verifier, signed []*keyless.Signature, goroutines int) (Verification, error) {
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	began := time.Now()
	for range goroutines {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(signed) {
					return
				}
				if err := verifier.Verify(signed[i]); err != nil {
					mu.Lock()
					first = fmt.Errorf("signature %d of %d, log index %d, does not verify: %w", i, len(signed), signed[i].Entry.LogIndex, err)
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return Verification{
		Signatures: len(signed), Goroutines: goroutines,
		PerSecond: float64(len(signed)) / time.Since(began).Seconds(),
	}, first
}

func newDigest() (d [sha256.Size]byte) {
	rand.Read(d[:])
	return d
}
