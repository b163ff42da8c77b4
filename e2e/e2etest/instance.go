package e2etest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startLimit bounds the making and starting of an instance; the self-test of
// the quickstart is part of it.
const startLimit = time.Minute

// stopLimit bounds a drain without requests that hang.
const stopLimit = 30 * time.Second

// An Instance is a sigboxd of its own process and folder.
type Instance struct {
	Dir        string
	URL        string
	RootSHA256 string // of the TUF root that clients pin

	sigboxd *Program // for the commands beside the serving process
	server  Program  // for the serving process
	args    []string
	log     string // file of standard error
	out     string // file of standard output

	attr    *syscall.SysProcAttr // of the serving process
	process *exec.Cmd
	ended   chan struct{} // closed when the process has been waited for
}

// Quickstart makes an instance with `sigboxd quickstart` and waits until it is
// ready. The test's end stops it and looks for panics in its log.
func Quickstart(t testing.TB) *Instance {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "instance")
	addr := FreeAddress(t)
	i := NewInstance(t, dir, "http://"+addr, "quickstart", "--dir", dir, "--listen", addr)
	i.Start(t)
	Eventually(t, startLimit, "the quickstart to say what to try next", func() bool {
		return strings.Contains(i.Said(t), i.RootSHA256) || !i.Running()
	})
	return i
}

// NewInstance describes a sigboxd that Start starts with the arguments given.
func NewInstance(t testing.TB, dir, url string, args ...string) *Instance {
	t.Helper()
	i := &Instance{
		Dir: dir, URL: url, args: args,
		sigboxd: NewProgram(t, Build(t, "sigboxd")),
		log:     filepath.Join(t.TempDir(), "sigboxd.log"),
		out:     filepath.Join(t.TempDir(), "sigboxd.out"),
	}
	i.server = *i.sigboxd
	t.Cleanup(func() { i.finish(t) })
	return i
}

// Start starts the process and waits until it is ready. It returns the time
// that took.
func (i *Instance) Start(t testing.TB) time.Duration {
	t.Helper()
	took := i.Launch(t)
	r := i.sigboxd.OK(t, "status", "--dir", i.Dir, "--json")
	var status struct {
		URL        string `json:"url"`
		RootSHA256 string `json:"root_sha256"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &status); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	if status.URL != i.URL || len(status.RootSHA256) != 64 {
		t.Fatalf("status names neither the instance's URL %s nor a root: %v", i.URL, r)
	}
	i.RootSHA256 = status.RootSHA256
	return took
}

// Launch starts the process and waits until /readyz answers 200, asking nothing
// more of it.
func (i *Instance) Launch(t testing.TB) time.Duration {
	t.Helper()
	i.Spawn(t)
	began := time.Now()
	Eventually(t, startLimit, "sigboxd to be ready", func() bool {
		select {
		case <-i.ended:
			t.Fatalf("sigboxd ended with code %d before it was ready\n%s", i.process.ProcessState.ExitCode(), i.Log(t))
		default:
		}
		resp, err := http.Get(i.URL + "/readyz")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		return resp.StatusCode == http.StatusOK
	})
	return time.Since(began)
}

// Spawn starts the process and waits for nothing.
func (i *Instance) Spawn(t testing.TB) {
	t.Helper()
	log := appendTo(t, i.log)
	defer log.Close()
	out := appendTo(t, i.out)
	defer out.Close()
	cmd := exec.Command(i.server.Path, i.args...)
	cmd.Dir, cmd.Env = i.server.Dir, i.server.environ()
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = out, log, i.attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	i.process, i.ended = cmd, ended
}

// Serve makes later starts use `sigboxd serve`, as an operator would.
func (i *Instance) Serve() { i.args = []string{"serve", "--dir", i.Dir} }

// Sigboxd is the appliance's program, for its other commands.
func (i *Instance) Sigboxd() *Program { return i.sigboxd }

// Token is one OIDC token of the instance's own issuer for jobs.
func (i *Instance) Token(t testing.TB, subject string) string {
	t.Helper()
	token := strings.TrimSpace(i.sigboxd.OK(t, "token", "--dir", i.Dir, "--subject", subject).Stdout)
	if strings.Count(token, ".") != 2 || strings.ContainsAny(token, " \n") {
		t.Fatalf("standard output is not one token: %q", token)
	}
	return token
}

// PID is the process id.
func (i *Instance) PID() int { return i.process.Process.Pid }

// Running tells whether the process has not ended.
func (i *Instance) Running() bool {
	if i.process == nil {
		return false
	}
	select {
	case <-i.ended:
		return false
	default:
		return true
	}
}

// Kill ends the process as a power cut would, as far as one process can.
func (i *Instance) Kill(t testing.TB) {
	t.Helper()
	if err := i.process.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	<-i.ended
}

// Signal sends a signal.
func (i *Instance) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := i.process.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Wait waits for the process to end and returns its exit code, -1 after a
// signal that it did not handle.
func (i *Instance) Wait(t testing.TB, limit time.Duration) int {
	t.Helper()
	select {
	case <-i.ended:
		return i.process.ProcessState.ExitCode()
	case <-time.After(limit):
		i.process.Process.Kill()
		t.Fatalf("sigboxd was still there after %v\n%s", limit, i.Log(t))
		return 0
	}
}

// Stop asks the process to end and demands that it does so properly.
func (i *Instance) Stop(t testing.TB) {
	t.Helper()
	i.Signal(t, syscall.SIGTERM)
	if code := i.Wait(t, stopLimit); code != 0 {
		t.Fatalf("exit code %d after SIGTERM\n%s", code, i.Log(t))
	}
}

// Log is what the process wrote on standard error so far, all its runs.
func (i *Instance) Log(t testing.TB) string { return read(t, i.log) }

// Said is what the process wrote on standard output so far, all its runs.
func (i *Instance) Said(t testing.TB) string { return read(t, i.out) }

func (i *Instance) finish(t testing.TB) {
	if i.process == nil {
		return
	}
	if i.Running() {
		i.Signal(t, syscall.SIGTERM)
		select {
		case <-i.ended:
			if code := i.process.ProcessState.ExitCode(); code != 0 {
				t.Errorf("exit code %d after SIGTERM", code)
			}
		case <-time.After(stopLimit):
			i.process.Process.Kill()
			<-i.ended
			t.Errorf("sigboxd was still there %v after SIGTERM", stopLimit)
		}
	}
	log := i.Log(t)
	for _, sign := range []string{"panic", "goroutine ", "DATA RACE", "fatal error:"} {
		if strings.Contains(log, sign) {
			t.Errorf("%q is in the log of sigboxd", sign)
		}
	}
	if t.Failed() {
		t.Logf("log of sigboxd:\n%s", tail(log, 64<<10))
	}
}

// Healthy demands that the instance is up and ready.
func (i *Instance) Healthy(t testing.TB) {
	t.Helper()
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get(i.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s: %s", path, resp.Status, body)
		}
	}
}

// Eventually polls until the condition holds and fails the test if it does not
// within the limit.
func Eventually(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited %v for %s", limit, what)
		}
	}
}

// FreeAddress is a loopback address that nobody listens on now.
func FreeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func appendTo(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func read(t testing.TB, path string) string {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	return string(data)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}

func itoa(n int) string { return strconv.Itoa(n) }

// RSS is the resident memory of a process in bytes.
func RSS(t testing.TB, pid int) int64 {
	t.Helper()
	for line := range strings.Lines(read(t, "/proc/"+itoa(pid)+"/status")) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("process %d has no resident memory", pid)
	return 0
}
