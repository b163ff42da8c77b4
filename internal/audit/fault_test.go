package audit_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/internal/audit"
)

const (
	writerEnv  = "SIGBOX_AUDIT_TEST_WRITER"
	limitedEnv = "SIGBOX_AUDIT_TEST_LIMITED"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		writeUntilKilled(dir)
	}
	os.Exit(m.Run())
}

// writeUntilKilled says on standard output what was acknowledged.
func writeUntilKilled(dir string) {
	l, err := audit.Open(audit.Options{Dir: dir, Instance: instance, SegmentBytes: 16 << 10})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)
				if err := l.Append(context.Background(), audit.Event{Type: audit.Issued, Service: "test", Fields: map[string]any{"id": id}}); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				mu.Lock()
				fmt.Println(id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKilledAtRandom: what was acknowledged is there, in an intact chain.
func TestKilledAtRandom(t *testing.T) {
	o := create(t, 16<<10)
	acknowledged := map[string]bool{}
	for range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+o.Dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := 1 + rand.IntN(200)
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Fatal(lines.Text())
			}
			acknowledged[lines.Text()] = true
			if n == after {
				// The rest of what was acknowledged is in the pipe.
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		records, _ := read(t, o)
		all := map[string]bool{}
		for _, r := range records {
			all[strings.TrimSuffix(strings.TrimPrefix(string(r.Fields), `{"id":"`), `"}`)] = true
		}
		for id := range acknowledged {
			if !all[id] {
				t.Fatalf("%s was acknowledged and is not there", id)
			}
		}
	}
	t.Logf("%d events acknowledged", len(acknowledged))
}

// TestNoRoom: the disk has no room for a whole line, and then has.
func TestNoRoom(t *testing.T) {
	// The limit is the process's, and the go command's files are in this one.
	if os.Getenv(limitedEnv) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestNoRoom$", "-test.v")
		cmd.Env = append(os.Environ(), limitedEnv+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestNoRoom") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	limit := func(n uint64) {
		t.Helper()
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer limit(was.Cur)

	o := create(t, 4<<10)
	l := open(t, o)
	add(t, l, audit.Issued, 1)
	info, err := os.Stat(segment(o, 1))
	if err != nil {
		t.Fatal(err)
	}
	limit(uint64(info.Size()) + 30)
	full := audit.Event{Type: audit.Issued, Service: "test", Fields: map[string]any{"id": strings.Repeat("x", 600)}}
	for range 3 {
		if err := l.Append(t.Context(), full); !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("appended without room: %v", err)
		}
	}
	if err := l.Check(t.Context()); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("check without room: %v", err)
	}
	if now, err := os.Stat(segment(o, 1)); err != nil || now.Size() != info.Size() {
		t.Errorf("%d bytes after writes that failed, before %d: %v", now.Size(), info.Size(), err)
	}
	limit(was.Cur)
	// Nobody needs to come for a certificate for it to go on.
	for deadline := time.Now().Add(10 * time.Second); l.Check(t.Context()) != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("does not go on with room")
		}
	}
	// Nor is there room for the next file.
	for info, err = os.Stat(segment(o, 1)); info.Size() < o.SegmentBytes; info, err = os.Stat(segment(o, 1)) {
		if err := errors.Join(err, l.Append(t.Context(), full)); err != nil {
			t.Fatal(err)
		}
	}
	limit(60)
	if err := l.Append(t.Context(), full); !errors.Is(err, syscall.EFBIG) {
		t.Fatalf("appended without room for a file: %v", err)
	}
	limit(was.Cur)
	if err := l.Append(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if records, sum := read(t, o); sum.Segments != 2 || !strings.Contains(string(records[2].Fields), "file too large") {
		t.Errorf("%+v, %s", sum, records[2].Raw)
	}
}
