// Package faults strikes a serving instance, or the folder of a stopped one, at
// one point after the other, starts it again without the fault, and judges by
// what it told its clients: nothing acknowledged may be lost, no log may show two
// histories, and whatever is refused has the reason that the fault gives.
//
// The judge shares no code with the product: it computes the trees from their
// leaves by itself, and asks over the public API alone.
//
// go test runs some points of each kind. scripts/faults runs many and prints the
// table.
package faults

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

var (
	points = flag.Int("points", 48, "how many faults to inject")
	seed   = flag.Uint64("seed", 1, "what the random moments and places are drawn from")
	only   = flag.String("only", "", "a part of the names of the faults to inject")
	// A machine that runs other tests at the same time is not held to two
	// seconds; the long run is.
	readyLimit = flag.Duration("ready", 20*time.Second, "how soon an instance must be ready after a fault")
	// To compile the product with another standard library takes minutes.
	clock = flag.Bool("clock", false, "step the clock, too")
	keep  = flag.String("keep", "", "where to keep the folders of the points that fail")
	lanes = flag.Int("lanes", 2, "how many instances are struck at the same time")
)

func TestMain(m *testing.M) {
	if dirs := os.Getenv(holderEnv); dirs != "" {
		if err := hold(strings.Split(dirs, ":")); err != nil {
			fmt.Fprintln(os.Stderr, "holding volumes:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(e2etest.Main(m))
}

// An outcome is the judge's word on a point.
type outcome struct {
	point
	verdict verdict
	detail  string
	ready   time.Duration
}

func TestFaults(t *testing.T) {
	needStrace(t)
	scenes := make([]*scene, *lanes)
	for i := range scenes {
		scenes[i] = newScene(t)
	}
	first := scenes[0]
	seen := first.record(t)
	sample := must(first.stage(t.TempDir()))(t)

	queue := make(chan point)
	var outcomes []outcome
	var mu sync.Mutex
	var done atomic.Int64
	var stepping *e2etest.Program
	if *clock {
		stepping = buildStepping(t)
	}
	plan := planned(seen, sample, stepping)
	root := t.TempDir()
	var work sync.WaitGroup
	for i, sc := range scenes {
		lane := filepath.Join(root, fmt.Sprint("lane-", i))
		work.Go(func() {
			for p := range queue {
				o := sc.strike(lane, p)
				mu.Lock()
				outcomes = append(outcomes, o)
				mu.Unlock()
				if n := done.Add(1); n%100 == 0 {
					t.Logf("%d of %d", n, len(plan))
				}
				if o.verdict.bad() {
					t.Errorf("%s, %s: %s: %s", o.fault, o.where, o.verdict, o.detail)
				}
			}
		})
	}
	for _, p := range plan {
		queue <- p
	}
	close(queue)
	work.Wait()
	var table strings.Builder
	report(&table, outcomes)
	fmt.Print(table.String())
}

// planned is as many points as were asked for, of each kind its share.
func planned(seen calls, sample *stage, stepping *e2etest.Program) []point {
	var volumes []string
	for _, v := range []string{"data", "audit", "anchor", "tuf", "archive"} {
		if info, err := os.Stat(sample.path(v)); err == nil && info.IsDir() {
			volumes = append(volumes, v)
		}
	}
	families := []family{
		{"kill", 20, kills},
		{"sigkill", 22, injections(seen, "SIGKILL", "signal=SIGKILL", "", straced...)},
		{"eio", 18, injections(seen, "EIO", "error=EIO", "", failing...)},
		{"enospc", 8, injections(seen, "ENOSPC from then on", "error=ENOSPC", "+", "pwrite64")},
		{"space", 6, spaces(volumes)},
		{"wal", 8, damages(sample, "write-ahead log", isWAL, wounds)},
		{"torn", 3, damages(sample, "write-ahead log", isWAL, torn)},
		{"pages", 6, damages(sample, "database", isDatabase, wounds)},
		{"records", 4, damages(sample, "record", isRecord, wounds)},
		{"putback", 3, putBack},
		{"clone", 1, clones(slices.Contains(volumes, "anchor"))},
		{"burst", 1, bursts},
	}
	if stepping != nil {
		families = append(families, family{"clock", 2, steps(stepping)})
	}
	var plan []point
	for i, f := range families {
		n := max(1, *points*f.weight/100)
		list := f.points(n, rand.New(rand.NewPCG(*seed, uint64(i))))
		if len(list) > n && f.name != "putback" && f.name != "clone" {
			list = spread(list, n)
		}
		plan = append(plan, list...)
	}
	// Some kinds have no more points than there are ways.
	if missing := *points - len(plan); missing > 0 {
		plan = append(plan, kills(missing, rand.New(rand.NewPCG(*seed, uint64(len(families)))))...)
	}
	if *only != "" {
		plan = slices.DeleteFunc(plan, func(p point) bool { return !strings.Contains(p.fault+", "+p.where, *only) })
	}
	return plan
}

// spread keeps n of a list, evenly.
func spread(list []point, n int) []point {
	kept := make([]point, n)
	for i := range kept {
		kept[i] = list[i*len(list)/n]
	}
	return kept
}

// strike is one point from its copy of the scene to its verdict.
func (sc *scene) strike(root string, p point) (o outcome) {
	o = outcome{point: p, verdict: unexplained}
	s, err := sc.stage(root)
	if err != nil {
		o.detail = err.Error()
		return o
	}
	defer func() {
		s.kill()
		if s.release != nil {
			s.release()
		}
		os.RemoveAll(s.dir)
	}()
	if err := p.strike(s); err != nil {
		o.detail = "while it struck: " + err.Error()
		var b *broken
		if errors.As(err, &b) {
			o.verdict, o.detail = b.verdict, "under the fault: "+b.what
		}
		return o
	}
	s.kill()
	if s.release == nil {
		s.before = nil
	}
	o.verdict, o.detail = s.judge(p.refusal, *readyLimit)
	if o.verdict.bad() && *keep != "" {
		kept := filepath.Join(*keep, filepath.Base(root)+"-"+filepath.Base(s.dir))
		if err := copyTree(kept, s.dir); err != nil {
			o.detail += fmt.Sprintf(" (not kept: %v)", err)
		}
	}
	o.ready = s.readyIn
	if p.undetectable && (o.verdict == lost || o.verdict == fork) {
		o.verdict = beyond
	}
	if o.verdict == lost && gap.MatchString(o.fault+", "+o.where) {
		o.verdict = open
	}
	return o
}

// gap is what is not told yet: that someone cut off or put back the newest part
// of a store of which nothing outside remembers how far it had come. These are
// the search index, the issuer's journal and the audit record. A fault that can
// happen by itself (a kill, a failed call, a full disk) is never one of them.
var gap = regexp.MustCompile(`^(write-ahead log|record|old copy put back)[:,].*(index\.db|search index|issuer|audit|journal)`)

// report prints a row for each kind of fault.
func report(w io.Writer, outcomes []outcome) {
	verdicts := []verdict{kept, refused, beyond, open, lost, fork, unexplained}
	type row struct {
		count map[verdict]int
		ready time.Duration
	}
	rows := map[string]*row{}
	total := &row{count: map[verdict]int{}}
	for _, o := range outcomes {
		if rows[o.fault] == nil {
			rows[o.fault] = &row{count: map[verdict]int{}}
		}
		for _, r := range []*row{rows[o.fault], total} {
			r.count[o.verdict]++
			r.ready = max(r.ready, o.ready)
		}
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "points\t")
	for _, v := range verdicts {
		fmt.Fprintf(table, "%s\t", v)
	}
	fmt.Fprint(table, "ready within\t  fault\n")
	line := func(name string, r *row) {
		n := 0
		for _, v := range verdicts {
			n += r.count[v]
		}
		fmt.Fprintf(table, "%d\t", n)
		for _, v := range verdicts {
			fmt.Fprintf(table, "%d\t", r.count[v])
		}
		fmt.Fprintf(table, "%v\t  %s\n", r.ready.Round(time.Millisecond), name)
	}
	names := make([]string, 0, len(rows))
	for name := range rows {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line(name, rows[name])
	}
	line("all", total)
	table.Flush()
	for _, v := range verdicts[2:] {
		for _, o := range outcomes {
			if o.verdict == v {
				fmt.Fprintf(w, "%s: %s, %s: %s\n", v, o.fault, o.where, strings.ReplaceAll(o.detail, "\n", " "))
			}
		}
	}
}

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
