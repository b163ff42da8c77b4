package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

// startLimit bounds a start under a fault; endLimit the end of a process that
// was killed.
const (
	startLimit = 30 * time.Second
	endLimit   = 30 * time.Second
)

// A scene is an instance with a history, of which each fault gets a copy: some
// signatures that came to rest in the databases, and some more that a kill -9
// left in the write-ahead logs.
type scene struct {
	sigboxd *e2etest.Program
	dir     string
	url     string
	issuer  []byte                     // of the certificates, DER
	trusted []byte                     // trusted_root.json
	trees   struct{ rekor, ct string } // their numbers
	ledger  *ledger
	stages  int
}

// newScene makes an instance and gives it a history.
func newScene(t *testing.T) *scene {
	t.Helper()
	addr := e2etest.FreeAddress(t)
	sc := &scene{
		sigboxd: e2etest.NewProgram(t, e2etest.Build(t, "sigboxd")),
		dir:     filepath.Join(t.TempDir(), "scene"),
		url:     "http://" + addr,
	}
	sc.sigboxd.OK(t, "init", "--dir", sc.dir, "--url", sc.url, "--listen", addr)
	s := &stage{scene: sc, dir: sc.dir}
	defer s.kill()
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	if err := sc.learn(); err != nil {
		t.Fatal(err)
	}
	sc.ledger = newLedger(must(newLogKeys(sc.trusted))(t))
	s.ledger = sc.ledger
	s.load(t.Context(), 2, 24)
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	s.load(t.Context(), 2, 12)
	s.kill()
	if n := sc.ledger.count(); n < 36 {
		t.Fatalf("%d signatures instead of 36: %v\n%s", n, sc.ledger.refusals, s.said())
	}
	return sc
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// learn reads what clients trust.
func (sc *scene) learn() (err error) {
	if sc.trusted, err = os.ReadFile(filepath.Join(sc.dir, "certs", "fulcio-chain.pem")); err != nil {
		return err
	}
	if sc.issuer, err = firstCertificate(sc.trusted); err != nil {
		return err
	}
	var instance struct {
		Rekor json.Number `json:"rekor_tree_id"`
		CT    json.Number `json:"ct_tree_id"`
	}
	data, err := os.ReadFile(filepath.Join(sc.dir, "instance.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &instance); err != nil {
		return err
	}
	if sc.trees.rekor, sc.trees.ct = instance.Rekor.String(), instance.CT.String(); sc.trees.rekor == "" || sc.trees.ct == "" {
		return fmt.Errorf("no trees in %s", data)
	}
	resp, err := http.Get(sc.url + "/trust/trusted_root.json")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc.trusted, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return err
}

// A stage is one copy of the scene with the process that serves it.
type stage struct {
	*scene
	dir  string
	name string // tells two stages in one folder apart
	// program is sigboxd, unless it is nil.
	program *e2etest.Program
	// stepped: the clock has, so that an entry may be from before its certificate.
	stepped bool
	ledger  *ledger
	// before goes before the command line of the next starts: strace, or the
	// way into a namespace.
	before []string
	// inside is the way to a file that only the process sees; release ends what
	// before leads into. Nil where there is no such thing.
	inside  func(path string) string
	release func()

	process *exec.Cmd
	ended   context.Context // done when the process has been waited for
	began   time.Time       // of the last start
	readyIn time.Duration
}

// stage copies the scene into a folder below root.
func (sc *scene) stage(root string) (*stage, error) {
	sc.stages++
	dir := filepath.Join(root, fmt.Sprintf("stage-%d", sc.stages))
	if err := copyTree(dir, sc.dir); err != nil {
		return nil, err
	}
	return &stage{scene: sc, dir: dir, ledger: sc.ledger.copied()}, nil
}

func (s *stage) log() string { return filepath.Join(s.dir, s.name+"faults.stderr") }

// said is what the process wrote on standard error since it was started last.
func (s *stage) said() string {
	data, err := os.ReadFile(s.log())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// spawn starts the process and waits for nothing.
func (s *stage) spawn() error {
	log, err := os.Create(s.log())
	if err != nil {
		return err
	}
	defer log.Close()
	program := s.sigboxd
	if s.program != nil {
		program = s.program
	}
	cmd := program.Command("serve", "--dir", s.dir)
	if len(s.before) > 0 {
		argv := append(s.before[:len(s.before):len(s.before)], cmd.Args...)
		path, err := exec.LookPath(argv[0])
		if err != nil {
			return err
		}
		cmd.Path, cmd.Args = path, argv
	}
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended, done := context.WithCancel(context.Background())
	go func() { cmd.Wait(); done() }()
	s.process, s.ended = cmd, ended
	return nil
}

// life ends with the process.
func (s *stage) life() context.Context { return s.ended }

func (s *stage) running() bool { return s.process != nil && s.ended.Err() == nil }

// An exited error is a process that has ended by itself.
type exited struct {
	code int
	said string
}

func (e *exited) Error() string { return fmt.Sprintf("exit code %d: %s", e.code, lastLines(e.said, 3)) }

// An unready error is what /readyz says instead of yes.
type unready struct{ said string }

func (u *unready) Error() string { return "/readyz: " + u.said }

// open starts the process and waits until it is ready. An error says why it is
// not.
func (s *stage) open() error {
	s.began = time.Now()
	if err := s.spawn(); err != nil {
		return err
	}
	return s.ready(startLimit)
}

// ready waits for an answer of /readyz: nil for a yes, *unready for a no,
// *exited if the process ends.
func (s *stage) ready(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := http.Get(s.url + "/readyz")
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			return &unready{string(bytes.TrimSpace(body))}
		}
		select {
		case <-tick.C:
		case <-s.ended.Done():
			return &exited{s.process.ProcessState.ExitCode(), s.said()}
		case <-ctx.Done():
			said := s.said()
			// Its log then tells where it hangs, for whoever keeps the folder.
			s.process.Process.Signal(syscall.SIGQUIT)
			s.await(5 * time.Second)
			return fmt.Errorf("neither ready nor gone after %v: %s", limit, lastLines(said, 3))
		}
	}
}

// kill ends the process as a power cut would, as far as one process can.
func (s *stage) kill() {
	if s.process == nil {
		return
	}
	s.process.Process.Kill()
	<-s.ended.Done()
	transport.CloseIdleConnections()
}

// stop asks the process to end.
func (s *stage) stop() error {
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-s.ended.Done():
	case <-time.After(endLimit):
		return errors.New("no end after SIGTERM")
	}
	transport.CloseIdleConnections()
	if code := s.process.ProcessState.ExitCode(); code != 0 {
		return &exited{code, s.said()}
	}
	return nil
}

// path is a file or folder of the instance.
func (s *stage) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// view is the same as the process sees it.
func (s *stage) view(elem ...string) string {
	if s.inside == nil {
		return s.path(elem...)
	}
	return s.inside(s.path(elem...))
}

// configure adds to the configuration.
func (s *stage) configure(yaml string) error {
	f, err := os.OpenFile(s.path("sigbox.yaml"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(yaml)
	return errors.Join(err, f.Close())
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// copyTree copies folders and files with their permissions. Sockets are left
// out: nobody serves them.
func copyTree(to, from string) error {
	return filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			if err := os.MkdirAll(target, 0o700); err != nil {
				return err
			}
			return nil
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(target, data, info.Mode().Perm())
		default:
			return nil
		}
	})
}
