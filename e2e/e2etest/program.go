package e2etest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// commandLimit bounds one run of a client. The slowest stock client starts in
// about a second; the rest is for a machine that compiles at the same time.
const commandLimit = 2 * time.Minute

// A Program is one executable with the environment it runs in: a home of its
// own, the proxy trap, and nothing of the caller's but PATH.
type Program struct {
	Path string
	Dir  string   // working folder
	Env  []string // added to the clean environment
}

// NewProgram gives an executable a home of its own below the test's folder.
func NewProgram(t testing.TB, path string, env ...string) *Program {
	t.Helper()
	return &Program{Path: path, Dir: t.TempDir(), Env: append([]string{"HOME=" + t.TempDir()}, env...)}
}

func (p *Program) environ() []string {
	clean := []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "LANG=C.UTF-8"}
	return append(append(clean, theTrap.environ()...), p.Env...)
}

// Command is the program with its arguments, ready to be started, for tests that
// do more to a process than run it.
func (p *Program) Command(args ...string) *exec.Cmd { return p.command(exec.Command(p.Path, args...)) }

func (p *Program) command(cmd *exec.Cmd) *exec.Cmd {
	cmd.Dir, cmd.Env = p.Dir, p.environ()
	return cmd
}

// A Result is what one run of a program left.
type Result struct {
	Command string
	Stdout  string
	Stderr  string
	Code    int
}

func (r Result) String() string {
	return r.Command + "\nexit code " + itoa(r.Code) + "\nstdout: " + r.Stdout + "\nstderr: " + r.Stderr
}

// Run runs the program to its end and reports whatever came of it.
func (p *Program) Run(t testing.TB, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := p.command(exec.CommandContext(ctx, p.Path, args...))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	r := Result{
		Command: filepath.Base(p.Path) + " " + redact(args),
		Stdout:  stdout.String(),
		Stderr:  stderr.String(),
		Code:    cmd.ProcessState.ExitCode(),
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", r, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("no end within %v: %v", commandLimit, r)
	}
	if strings.Contains(r.Stderr, "panic:") || strings.Contains(r.Stderr, "\ngoroutine ") {
		t.Fatalf("a panic: %v", r)
	}
	return r
}

// OK demands exit code 0.
func (p *Program) OK(t testing.TB, args ...string) Result {
	t.Helper()
	r := p.Run(t, args...)
	if r.Code != 0 {
		t.Fatal(r)
	}
	return r
}

// Refuses demands that the program says no, and that it says so because of
// what the test spoiled: one of the words is in its output. A client that fails
// for another reason (a typing error in a flag, a network that is down) would
// otherwise pass for one that checks.
func (p *Program) Refuses(t testing.TB, words []string, args ...string) Result {
	t.Helper()
	r := p.Run(t, args...)
	if r.Code == 0 {
		t.Fatalf("accepted what it must refuse: %v", r)
	}
	for _, w := range words {
		if strings.Contains(strings.ToLower(r.Stderr+r.Stdout), strings.ToLower(w)) {
			return r
		}
	}
	t.Fatalf("refused, but none of %q is in what it says: %v", words, r)
	return r
}

// ExitsWith demands one exit code and a word in standard error: what our own
// programs promise.
func (p *Program) ExitsWith(t testing.TB, code int, word string, args ...string) Result {
	t.Helper()
	r := p.Run(t, args...)
	if r.Code != code || !strings.Contains(r.Stderr, word) {
		t.Fatalf("want exit code %d and %q on standard error: %v", code, word, r)
	}
	return r
}

// redact keeps tokens, which are long and of no use to a reader, out of messages.
func redact(args []string) string {
	shown := make([]string, len(args))
	for i, a := range args {
		if strings.HasPrefix(a, "eyJ") && strings.Count(a, ".") == 2 {
			a = "TOKEN"
		}
		shown[i] = a
	}
	return strings.Join(shown, " ")
}
