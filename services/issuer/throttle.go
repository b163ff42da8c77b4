package issuer

import (
	"crypto/sha256"
	"sync"
	"time"
)

// throttle bounds how often each key may fail: burst times at once, then once
// per interval. Attempts under way count as failures until they are known to
// have succeeded, so that guessing in parallel gains nothing; an attempt that
// would exceed the bound only because of those waits for one of them.
type throttle struct {
	burst    float64
	interval time.Duration
	now      func() time.Time

	mu      sync.Mutex
	settled sync.Cond
	keys    map[[sha256.Size]byte]*allowance // by hash, so that long keys cost nothing
}

type allowance struct {
	left     float64
	at       time.Time
	underWay int
}

// maxThrottled bounds the memory: some 2 MB for each throttle.
const maxThrottled = 16 << 10

func newThrottle(burst int, interval time.Duration, now func() time.Time) *throttle {
	t := &throttle{burst: float64(burst), interval: interval, now: now, keys: map[[sha256.Size]byte]*allowance{}}
	t.settled.L = &t.mu
	return t
}

// begin tells whether the key may make an attempt, and if so the caller must
// call done with its outcome.
func (t *throttle) begin(key string) (done func(success bool), ok bool) {
	id := sha256.Sum256([]byte(key))
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		a := t.get(id)
		if a.left-float64(a.underWay) >= 1 {
			a.underWay++
			return func(success bool) { t.end(a, success) }, true
		}
		if a.left < 1 {
			return nil, false
		}
		t.settled.Wait()
	}
}

func (t *throttle) end(a *allowance, success bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.underWay--
	if !success {
		a.left--
	}
	t.settled.Broadcast()
}

// get finds the key's allowance as of now. The caller holds mu.
func (t *throttle) get(id [sha256.Size]byte) *allowance {
	now := t.now()
	a := t.keys[id]
	if a == nil {
		if len(t.keys) >= maxThrottled {
			t.evict(now)
		}
		a = &allowance{left: t.burst, at: now}
		t.keys[id] = a
	}
	t.refill(a, now)
	return a
}

func (t *throttle) refill(a *allowance, now time.Time) {
	if passed := now.Sub(a.at); passed > 0 {
		a.left = min(t.burst, a.left+float64(passed)/float64(t.interval))
	}
	a.at = now
}

// evict makes room by looking at a few keys, which map iteration picks at
// random: those with a full allowance go, or else the one that has most left.
func (t *throttle) evict(now time.Time) {
	const look = 16
	var most [sha256.Size]byte
	left, seen, gone := -1.0, 0, false
	for id, a := range t.keys {
		if seen++; seen > look {
			break
		}
		if a.underWay > 0 {
			continue
		}
		t.refill(a, now)
		if a.left >= t.burst {
			delete(t.keys, id)
			gone = true
		} else if a.left > left {
			most, left = id, a.left
		}
	}
	if !gone && left >= 0 {
		delete(t.keys, most)
	}
}
