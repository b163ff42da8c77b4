package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The load under most faults.
const (
	faultWorkers = 4
	faultLoad    = 12
)

// A point is a fault (what) and where or when it strikes.
type point struct {
	fault, where string
	// refusal is what the instance may answer instead of going on; nil: it must
	// go on.
	refusal *regexp.Regexp
	// undetectable marks a fault that leaves nothing to tell it by. A fork that
	// follows is the finding, not a failure.
	undetectable bool
	strike       func(s *stage) error
}

// Reasons that an instance may have for a refusal, each beginning with what the
// operator is told.
var (
	behind  = regexp.MustCompile(`(?i)anchor|older|behind|damaged|missing|not a file of this storage`)
	damaged = regexp.MustCompile(`(?i)damaged|the log is frozen|malformed|corrupt|not a database|not a file of this storage|anchor|checksum|missing|not as (it|they) w|not a journal`)
	inUse   = regexp.MustCompile(`(?i)in use|locked|another process|another sigboxd|address already`)
)

// A family is a kind of fault with all its points.
type family struct {
	name   string
	weight int // of 100, for a long run
	// points are at least as many as asked for.
	points func(n int, r *rand.Rand) []point
}

// kills are SIGKILLs at random moments: some while starting, most under load.
func kills(n int, r *rand.Rand) (list []point) {
	for i := range n {
		after := time.Duration(r.IntN(500)) * time.Millisecond
		if i%4 == 3 {
			after = time.Duration(r.IntN(200)) * time.Millisecond
			list = append(list, point{fault: "kill -9 while starting", where: fmt.Sprintf("after %v", after), strike: func(s *stage) error {
				if err := s.spawn(); err != nil {
					return err
				}
				s.await(after)
				s.kill()
				return nil
			}})
			continue
		}
		list = append(list, point{fault: "kill -9 under load", where: fmt.Sprintf("after %v", after), strike: func(s *stage) error {
			if err := s.open(); err != nil {
				return err
			}
			done := make(chan struct{})
			go func() { s.load(context.Background(), 2*faultWorkers, 1000); close(done) }()
			s.await(after)
			s.kill()
			<-done
			return nil
		}})
	}
	return list
}

// await lets the process work for a while: the moment is what is random.
func (s *stage) await(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ended.Done():
	}
}

// injections strike at calls spread evenly over a run.
func injections(seen calls, what, fault, suffix string, at ...string) func(int, *rand.Rand) []point {
	return func(n int, r *rand.Rand) (list []point) {
		// A call that is made often gets more points than one that is made once.
		var weights float64
		for _, c := range at {
			weights += share(seen[c])
		}
		for _, c := range at {
			most := seen[c]
			if most == 0 {
				continue
			}
			k := max(1, int(float64(n)*share(most)/weights+0.5))
			for i := range k {
				when := 1 + i*most/k
				if k <= most {
					when += r.IntN(max(1, most/k))
				}
				list = append(list, point{
					fault: fmt.Sprintf("%s at %s", what, c), where: fmt.Sprintf("call %d of %d", when, most),
					strike: func(s *stage) error {
						s.injecting(c, fault, fmt.Sprint(when)+suffix)
						return s.suffer()
					},
				})
			}
		}
		return list
	}
}

func share(calls int) float64 {
	n := 0.0
	for ; calls > 0; calls /= 2 {
		n++
	}
	return n
}

// suffer starts the process, loads it, and kills what is left of it. A process
// that survives and refuses everything must say that it is not ready.
func (s *stage) suffer() error {
	err := s.open()
	var gone *exited
	var not *unready
	switch {
	case err == nil:
	case errors.As(err, &gone):
		return s.explained(gone)
	case errors.As(err, &not):
		s.kill()
		return nil
	default:
		return err
	}
	s.load(context.Background(), faultWorkers, faultLoad)
	defer s.kill()
	if !s.running() {
		return s.explained(&exited{s.process.ProcessState.ExitCode(), s.said()})
	}
	client := s.signer(1)
	if last := client.sign(context.Background()); last != nil && s.running() {
		// /readyz looks at the disk once a second at most.
		for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			switch err := s.ready(startLimit); {
			case err != nil: // it has gone, or says no
				return nil
			case client.sign(context.Background()) == nil:
				return nil
			case time.Now().After(deadline):
				return breaks(unexplained, "it signs nothing and says it is ready: %v", last)
			}
		}
	}
	return nil
}

// explained demands a reason of a process that ended: a signal, or an error in
// the log.
func (s *stage) explained(gone *exited) error {
	switch {
	case gone.code == -1: // the signal that was injected
		return nil
	case strings.Contains(gone.said, "netpollBreak"):
		// Go's runtime itself ends the process when its pipe fails.
		return nil
	case strings.Contains(gone.said, "goroutine "):
		return breaks(unexplained, "it panicked: %.600s", gone.said)
	case !strings.Contains(gone.said, "sigboxd: error: "):
		return breaks(unexplained, "it ended without a reason: %v", gone)
	}
	return nil
}

// stores are the labels of the files with state, in a stage whose process was
// killed.
func (s *stage) stores(match func(name string) bool) (list []string) {
	for _, dir := range []string{"data", "anchor", "audit", "archive"} {
		filepath.WalkDir(s.path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && match(d.Name()) {
				if info, err := d.Info(); err == nil && info.Size() > 0 {
					rel, _ := filepath.Rel(s.dir, path)
					list = append(list, s.label(rel))
				}
			}
			return nil
		})
	}
	slices.Sort(list)
	return list
}

func isWAL(name string) bool      { return strings.HasSuffix(name, "-wal") }
func isDatabase(name string) bool { return strings.HasSuffix(name, ".db") }
func isRecord(name string) bool {
	return !isWAL(name) && !isDatabase(name) && !strings.HasSuffix(name, "-shm") && name != "lock"
}

// A wound is a way to damage a file at a place.
type wound struct {
	name string
	// harmless: a reader must cope, as a power cut leaves the like.
	harmless bool
	damage   func(data []byte, at int) []byte
}

var wounds = []wound{
	{"bit flipped", false, func(d []byte, at int) []byte { d[at] ^= 1 << (at % 8); return d }},
	{"cut off", false, func(d []byte, at int) []byte { return d[:at] }},
	{"zeroed", false, func(d []byte, at int) []byte { clear(d[at:min(len(d), at+4096)]); return d }},
}

// torn is what a power cut can leave behind the last commit.
var torn = []wound{
	{"half a frame behind the end", true, func(d []byte, _ int) []byte { return append(d, bytes.Repeat([]byte{0xA5}, 2000)...) }},
	{"zeros behind the end", true, func(d []byte, _ int) []byte { return append(d, make([]byte, 3*4120)...) }},
}

// places are fractions of a file.
var places = []struct {
	name string
	at   func(size int, r *rand.Rand) int
}{
	{"beginning", func(size int, r *rand.Rand) int { return r.IntN(min(size, 100)) }},
	{"middle", func(size int, r *rand.Rand) int { return size/4 + r.IntN(size/2+1) }},
	{"end", func(size int, r *rand.Rand) int { return size - 1 - r.IntN(min(size, 100)) }},
}

// damages strikes every store that matches, in every way at every place, while
// nothing runs.
func damages(sample *stage, what string, match func(string) bool, ways []wound) func(int, *rand.Rand) []point {
	return func(n int, r *rand.Rand) (list []point) {
		for len(list) < n {
			for _, place := range places {
				for _, way := range ways {
					if way.harmless && place.name != "end" {
						continue
					}
					for _, file := range sample.stores(match) {
						seed := r.Uint64()
						p := point{
							fault: what + ": " + way.name, where: strings.TrimPrefix(file, "data/") + ", " + place.name,
							strike: func(s *stage) error {
								data, err := os.ReadFile(s.file(file))
								if err != nil {
									return err
								}
								at := place.at(len(data), rand.New(rand.NewPCG(seed, 0)))
								return os.WriteFile(s.file(file), way.damage(data, at), 0o600)
							},
						}
						if !way.harmless {
							p.refusal = damaged
						}
						list = append(list, p)
					}
				}
			}
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list
	}
}

// label is a file's name with the names of the logs in the place of their numbers.
func (sc *scene) label(file string) string {
	return strings.NewReplacer(sc.trees.rekor, "{rekor}", sc.trees.ct, "{ct}").Replace(file)
}

// file is the file of a label.
func (s *stage) file(label string) string {
	return s.path(strings.NewReplacer("{rekor}", s.trees.rekor, "{ct}", s.trees.ct).Replace(label))
}

// putBack restores some of an older copy under a newer instance.
func putBack(int, *rand.Rand) (list []point) {
	for _, c := range []struct {
		where        string
		what         []string
		undetectable bool
	}{
		{"all data", []string{"data"}, false},
		{"data and audit record", []string{"data", "audit"}, false},
		{"the logs", []string{"data/logs"}, false},
		{"rekor's log", []string{"data/logs/tree-{rekor}.db"}, false},
		{"the ct log", []string{"data/logs/tree-{ct}.db"}, false},
		{"the search index", []string{"data/rekor"}, false},
		{"the issuer", []string{"data/issuer"}, false},
		{"the audit record", []string{"audit"}, false},
		{"the anchor", []string{"anchor"}, false},
		{"everything, the anchor too", []string{"data", "audit", "anchor", "tuf"}, true},
	} {
		list = append(list, point{
			fault: "old copy put back", where: c.where, refusal: behind, undetectable: c.undetectable,
			strike: func(s *stage) error {
				if err := s.open(); err != nil {
					return err
				}
				s.load(context.Background(), faultWorkers, faultLoad)
				s.kill()
				for _, what := range c.what {
					if err := s.restore(what); err != nil {
						return err
					}
				}
				return nil
			},
		})
	}
	return list
}

// restore puts a file or folder of the scene in the place of the stage's.
func (s *stage) restore(what string) error {
	if !strings.Contains(what, "{") {
		if _, err := os.Stat(filepath.Join(s.scene.dir, what)); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := os.RemoveAll(s.path(what)); err != nil {
			return err
		}
		return copyTree(s.path(what), filepath.Join(s.scene.dir, what))
	}
	was := *s
	was.dir = s.scene.dir
	for _, end := range []string{"", "-wal", "-shm"} {
		data, err := os.ReadFile(was.file(what + end))
		if errors.Is(err, fs.ErrNotExist) {
			err = os.RemoveAll(s.file(what + end))
		} else if err == nil {
			err = os.WriteFile(s.file(what+end), data, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clones start a second process: on the same folder, or on a copy of it made
// while the first one serves.
func clones(anchored bool) func(int, *rand.Rand) []point {
	list := cloned
	if anchored {
		list = append(list, clonedBesideItsAnchor...)
	}
	return func(int, *rand.Rand) []point { return list }
}

var (
	cloned = []point{
		{fault: "clone", where: "a second process on the same folder", strike: func(s *stage) error {
			if err := s.open(); err != nil {
				return err
			}
			defer s.kill()
			other := *s
			other.name = "second "
			if err := other.spawn(); err != nil {
				return err
			}
			defer other.kill()
			select {
			case <-other.ended.Done():
			case <-time.After(startLimit):
				return breaks(fork, "two processes serve one folder")
			}
			if said := other.said(); !inUse.MatchString(said) {
				return breaks(unexplained, "the second process says %s", lastLines(said, 2))
			}
			s.load(context.Background(), faultWorkers, faultLoad)
			return nil
		}},
		{fault: "clone", where: "a copied folder, the original has gone", strike: func(s *stage) error {
			if err := s.open(); err != nil {
				return err
			}
			s.load(context.Background(), faultWorkers, faultLoad)
			s.kill()
			moved := s.dir + "-moved"
			if err := copyTree(moved, s.dir); err != nil {
				return err
			}
			s.dir = moved
			return nil
		}},
		{fault: "clone", where: "a copied folder, after the original went on", refusal: behind, undetectable: true, strike: func(s *stage) error {
			copied := s.dir + "-copy"
			if err := s.open(); err != nil {
				return err
			}
			if err := copyTree(copied, s.dir); err != nil {
				return err
			}
			s.load(context.Background(), faultWorkers, faultLoad)
			s.kill()
			s.dir = copied
			return nil
		}},
	}

	// The anchor is on a volume that is not copied.
	clonedBesideItsAnchor = []point{
		{fault: "clone", where: "a copied folder with the original's anchor, while the original serves", strike: func(s *stage) error {
			if err := s.anchorApart(); err != nil {
				return err
			}
			if err := s.open(); err != nil {
				return err
			}
			defer s.kill()
			other := *s
			other.dir = s.dir + "-copy"
			if err := copyTree(other.dir, s.dir); err != nil {
				return err
			}
			config, err := os.ReadFile(other.path("sigbox.yaml"))
			if err != nil {
				return err
			}
			_, port, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), ":")
			moved := strings.Replace(string(config), "listen: 127.0.0.1:"+port, "listen: 127.0.0.2:"+port, 1)
			if moved == string(config) {
				return fmt.Errorf("no address in %s", config)
			}
			if err := os.WriteFile(other.path("sigbox.yaml"), []byte(moved), 0o600); err != nil {
				return err
			}
			if err := other.spawn(); err != nil {
				return err
			}
			defer other.kill()
			select {
			case <-other.ended.Done():
			case <-time.After(startLimit):
				return breaks(fork, "a clone serves beside its original")
			}
			if said := other.said(); !inUse.MatchString(said) {
				return breaks(unexplained, "the clone says %s", lastLines(said, 2))
			}
			s.load(context.Background(), faultWorkers, faultLoad)
			return nil
		}},
		{fault: "clone", where: "a copied folder with the original's anchor, after the original went on", refusal: behind, strike: func(s *stage) error {
			copied := s.dir + "-copy"
			if err := s.anchorApart(); err != nil {
				return err
			}
			if err := s.open(); err != nil {
				return err
			}
			if err := copyTree(copied, s.dir); err != nil {
				return err
			}
			s.load(context.Background(), faultWorkers, faultLoad)
			s.kill()
			s.dir = copied
			return nil
		}},
	}
)

// anchorApart moves the anchor out of the instance's folder.
func (s *stage) anchorApart() error {
	apart := s.dir + "-anchor"
	if err := os.Rename(s.path("anchor"), apart); err != nil {
		return err
	}
	return s.configure("storage:\n  anchor_dir: " + apart + "\n")
}

// bursts ask for ten times what may be under way.
func bursts(n int, _ *rand.Rand) (list []point) {
	for range min(n, 3) {
		list = append(list, point{fault: "burst", where: "ten times capacity", strike: func(s *stage) error {
			if err := s.configure("limits:\n  max_in_flight: 2\n  max_queued: 2\n"); err != nil {
				return err
			}
			if err := s.open(); err != nil {
				return err
			}
			defer s.kill()
			before := s.ledger.count()
			s.load(context.Background(), 40, 60)
			if s.ledger.overloaded == 0 {
				return breaks(unexplained, "nobody of 40 was told to come again: %v", s.ledger.refusals)
			}
			if s.ledger.count() == before {
				return breaks(unexplained, "nobody of 40 was served: %v", s.ledger.refusals)
			}
			for what := range s.ledger.refusals {
				if !strings.Contains(what, " 503: ") {
					return breaks(unexplained, "refused otherwise than by 503 with Retry-After: %s", what)
				}
			}
			return nil
		}})
	}
	return list
}
