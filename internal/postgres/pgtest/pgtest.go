// Package pgtest gives tests a PostgreSQL server of their own: the binaries of
// the distribution's package on a temporary folder, one server a test process,
// one database a test.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sigbox/sigbox/internal/postgres"
)

// Install is the step that brings the binaries onto Debian and its relatives.
const Install = "apt-get install -y postgresql"

// startLimit bounds what the server may take to start or to stop.
const startLimit = time.Minute

// Main runs a package's tests and then removes the server, if one was started:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := Shutdown(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return max(code, 1)
	}
	return code
}

// Shutdown removes the shared server, if one was started.
func Shutdown() error {
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		return nil
	}
	err := errors.Join(shared.server.Stop(), os.RemoveAll(shared.server.dir))
	shared.server = nil
	return err
}

var shared struct {
	sync.Mutex
	server *Server
}

// Shared is the test process's server. Its tests must not stop it: for that
// there is [New].
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil {
		s, err := create()
		if err == nil {
			err = s.Start()
		}
		if err != nil {
			t.Fatalf("starting postgresql: %v", err)
		}
		shared.server = s
	}
	return shared.server
}

// New is a server of one test, running.
func New(t testing.TB) *Server {
	t.Helper()
	s, err := create()
	if err != nil {
		t.Fatalf("making a postgresql server: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Stop(), os.RemoveAll(s.dir)); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Database makes an empty database on the shared server and returns how to
// connect to it.
func Database(t testing.TB) postgres.DSN {
	t.Helper()
	return postgres.NewDSN(Shared(t).Database(t))
}

// Server is a server on a folder of its own. It listens on a unix socket in
// it and on a loopback port.
type Server struct {
	bin, dir string
	port     int
	as       *syscall.Credential // nil: this process's user
	renamed  bool                // in a user namespace, so that it is not root there
	count    atomic.Int64

	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{}
}

// create finds the binaries and makes a cluster.
func create() (_ *Server, err error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pgtest-")
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if os.Geteuid() == 0 {
		// The server refuses to run as root.
		if s.as, err = someoneElse(); err != nil {
			return nil, err
		}
		err := os.Chown(dir, int(s.as.Uid), int(s.as.Gid))
		if errors.Is(err, syscall.EINVAL) {
			// In a user namespace that knows no other: one more, in which this user
			// is not root.
			s.as, s.renamed, err = nil, true, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if s.port, err = freePort(); err != nil {
		return nil, err
	}
	// The cluster itself need not survive a power cut, but what runs on it must
	// be told that commits do: fsync stays on.
	if out, err := s.run("initdb", "--no-sync", "--auth=trust", "--username=sigbox", "--encoding=UTF8", "--locale=C", "-D", s.data()); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return s, nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// binaries is the folder with initdb and postgres. Where the package is
// missing and this process may install it, it does, and says so.
func binaries() (string, error) {
	if dir := find(); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		fmt.Fprintln(os.Stderr, "pgtest: PostgreSQL's binaries are missing, running:", Install)
		cmd := exec.Command("sh", "-c", "apt-get update && DEBIAN_FRONTEND=noninteractive "+Install)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("installing postgresql: %w\n%s", err, out)
		}
		if dir := find(); dir != "" {
			return dir, nil
		}
	}
	return "", errors.New("PostgreSQL's binaries initdb and postgres are neither in PATH nor in /usr/lib/postgresql/*/bin: as root, " + Install)
}

func find() string {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well formed
	slices.SortFunc(candidates, func(a, b string) int { return version(b) - version(a) })
	for _, name := range []string{"initdb"} {
		if path, err := exec.LookPath(name); err == nil {
			if path, err = filepath.EvalSymlinks(path); err == nil {
				candidates = append(candidates, filepath.Dir(path))
			}
		}
	}
	for _, dir := range candidates {
		complete := true
		for _, name := range []string{"initdb", "postgres", "pg_ctl"} {
			_, err := exec.LookPath(filepath.Join(dir, name))
			complete = complete && err == nil
		}
		if complete {
			return dir
		}
	}
	return ""
}

func version(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin))) // no number sorts last
	return n
}

func someoneElse() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: false}, nil
	}
	return nil, errors.New("postgresql does not run as root, and there is neither a user postgres nor nobody")
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

func (s *Server) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + s.bin + ":" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + s.dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	if s.renamed {
		const someone = 1000
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: someone, HostID: 0, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: someone, HostID: 0, Size: 1}}
	}
	return cmd
}

func (s *Server) run(name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	return s.command(ctx, name, args...).CombinedOutput()
}

// Start starts the server, after [New], Stop or Kill, and waits until it
// answers. Settings are added to the server's command line.
func (s *Server) Start(settings ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("it runs already")
	}
	args := []string{
		"-D", s.data(), "-k", s.dir, "-h", "127.0.0.1", "-p", strconv.Itoa(s.port),
		"-c", "max_connections=200", "-c", "shared_buffers=64MB", "-c", "log_min_messages=warning",
	}
	for _, setting := range settings {
		args = append(args, "-c", setting)
	}
	cmd := s.command(context.Background(), "postgres", args...)
	// The server must not outlive a test process that is killed. The kernel
	// watches the thread, so the one that starts it stays.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	started, ended := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait() // Stop and Kill want it gone, however
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	for deadline := time.Now().Add(startLimit); ; {
		err := ping(s.DSN("postgres"))
		if err == nil {
			s.cmd, s.ended = cmd, ended
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("postgres ended: %s\n%s", cmd.ProcessState, log.Bytes())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			<-ended
			return fmt.Errorf("postgres does not answer: %w\n%s", err, log.Bytes())
		}
	}
}

func ping(dsn string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

// Stop ends the server as an administrator in a hurry does: sessions are cut
// ("fast").
func (s *Server) Stop() error { return s.end(syscall.SIGINT) }

// Kill ends the server as a crash does: nothing is written any more.
func (s *Server) Kill() error { return s.end(syscall.SIGQUIT) }

func (s *Server) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	cmd, ended := s.cmd, s.ended
	s.cmd = nil
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(startLimit):
		cmd.Process.Kill()
		<-ended
		return errors.New("postgres did not end")
	}
}

// DSN connects to a database over the unix socket.
func (s *Server) DSN(database string) string {
	return fmt.Sprintf("host=%s port=%d user=sigbox dbname=%s sslmode=disable", s.dir, s.port, database)
}

// TCP is the server's address, HOST:PORT, on loopback.
func (s *Server) TCP() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Database makes an empty database and returns how to connect to it.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.count.Add(1))
	s.Exec(t, "postgres", "CREATE DATABASE "+name)
	return s.DSN(name)
}

// Exec runs statements in a database as its owner.
func (s *Server) Exec(t testing.TB, database string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	c, err := pgx.Connect(ctx, s.DSN(database))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(ctx)
	for _, statement := range statements {
		if _, err := c.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", strings.TrimSpace(statement), err)
		}
	}
}
