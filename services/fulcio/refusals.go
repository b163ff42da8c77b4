package fulcio

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/sigbox/sigbox/internal/audit"
)

const (
	// Refusals of one reason that have a record each: so many a second, and so
	// many at once.
	refusalRate  = 10
	refusalBurst = 100
	// summaryInterval is the time between records of the others.
	summaryInterval = time.Second
)

// refusals puts refusals on record. Each has a record of its own, durable before
// the answer. Anybody can be refused as often as they like, so beyond a rate they
// are counted, and the counts are put on record every second: the record grows by
// what one line takes, however many come. The rate is for each reason, so that a
// flood of nonsense hides no token that was replayed.
type refusals struct {
	record audit.Func
	limits map[string]*rate.Limiter

	mu     sync.Mutex
	counts map[string]int // by reason, not on record yet
	since  time.Time      // of the first of them
}

func newRefusals(record audit.Func) *refusals {
	r := &refusals{record: record, limits: map[string]*rate.Limiter{}, counts: map[string]int{}}
	for _, reason := range reasons {
		r.limits[reason] = rate.NewLimiter(refusalRate, refusalBurst)
	}
	return r
}

// add records one refusal, or counts it.
func (r *refusals) add(ctx context.Context, reason string, fields map[string]any) error {
	if r.limits[reason].Allow() {
		return r.record(ctx, audit.Event{Type: audit.Refused, Service: service, Fields: fields})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.counts) == 0 {
		r.since = time.Now()
	}
	r.counts[reason]++
	return nil
}

// summarise puts on record what was counted. What cannot be recorded now stays
// counted.
func (r *refusals) summarise(ctx context.Context) error {
	r.mu.Lock()
	counts, since := r.counts, r.since
	r.counts = map[string]int{}
	r.mu.Unlock()
	if len(counts) == 0 {
		return nil
	}
	total := 0
	for _, n := range counts {
		total += n
	}
	err := r.record(ctx, audit.Event{Type: audit.Refused, Service: service, Fields: map[string]any{
		"count": total, "reasons": counts, "since": since.UTC().Truncate(time.Millisecond),
	}})
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.since = since
		for reason, n := range counts {
			r.counts[reason] += n
		}
	}
	return err
}

// run summarises until ctx is done, and then once more.
func (r *refusals) run(ctx context.Context, failed func(error)) {
	tick := time.NewTicker(summaryInterval)
	defer tick.Stop()
	for done := false; !done; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			done = true
		}
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditTimeout)
		if err := r.summarise(bounded); err != nil {
			failed(err)
		}
		cancel()
	}
}
