package durability

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
)

// TestDrain: what was begun before SIGTERM is finished and kept, nothing new is
// begun, and the process ends with exit code 0.
func TestDrain(t *testing.T) { e2etest.OnEngines(t, testDrain) }

func testDrain(t *testing.T, i *e2etest.Instance) {
	l := newLedger(t, i)
	body := proposedEntry(t)
	slow := halfPost(t, i, body)
	wait := l.burst(context.Background(), 4)
	e2etest.Eventually(t, time.Minute, "signatures to be acknowledged", func() bool { return l.count() >= 10 })

	i.Signal(t, syscall.SIGTERM)
	e2etest.Eventually(t, 10*time.Second, "new connections to be refused", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(i.URL, "http://"))
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if !i.Running() {
		t.Fatal("the process ended before the request under way was finished")
	}
	if status := slow.finish(t); status != http.StatusCreated {
		t.Fatalf("the request under way was answered with %d", status)
	}
	wait()
	if code := i.Wait(t, 30*time.Second); code != 0 {
		t.Fatalf("exit code %d\n%s", code, i.Log(t))
	}
	i.Launch(t)
	l.holds(t)
}

// TestSecondSignal: an operator who asks twice is not kept waiting by a client
// that never finishes; and nothing acknowledged is lost by that.
func TestSecondSignal(t *testing.T) {
	i := e2etest.Quickstart(t)
	i.Serve()
	l := newLedger(t, i)
	s, err := l.client(1).Sign(context.Background(), [32]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	l.note(s)
	halfPost(t, i, proposedEntry(t))
	i.Signal(t, syscall.SIGTERM)
	e2etest.Eventually(t, 10*time.Second, "new connections to be refused", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(i.URL, "http://"))
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	i.Signal(t, syscall.SIGTERM)
	if code := i.Wait(t, 2*time.Second); code == 0 {
		t.Error("exit code 0, though requests were cut off")
	}
	i.Launch(t)
	l.holds(t)
}

// TestOneProcess: no children, and nothing listens but the one origin.
func TestOneProcess(t *testing.T) {
	i := e2etest.Quickstart(t)
	if _, err := newLedger(t, i).client(1).Sign(context.Background(), [32]byte{1}); err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", i.PID()))
	if err != nil || len(lists) == 0 {
		t.Fatal("no list of children", err)
	}
	for _, path := range lists {
		if children, err := os.ReadFile(path); err == nil && len(children) > 0 {
			t.Errorf("sigboxd has child processes: %s", children)
		}
	}
	_, port, err := net.SplitHostPort(strings.TrimPrefix(i.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, addr := range listening(t, i.PID()) {
		if addr != "0100007F:"+fmt.Sprintf("%04X", atoi(t, port)) {
			t.Errorf("sigboxd listens on %s (hexadecimal) as well", addr)
		}
	}
}

// A half is a request whose body is not all sent.
type half struct {
	conn net.Conn
	rest string
}

// halfPost begins to post an entry and keeps half of the body back.
func halfPost(t *testing.T, i *e2etest.Instance, body string) *half {
	t.Helper()
	host := strings.TrimPrefix(i.URL, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := len(body) / 2
	_, err = fmt.Fprintf(conn, "POST /api/v1/log/entries HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", host, len(body))
	if err != nil {
		t.Fatal(err)
	}
	// The server says "continue" when a handler reads the body: from then on
	// the request is under way.
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil || !strings.Contains(line, "100") {
		t.Fatalf("%q: %v", line, err)
	}
	if _, err := conn.Write([]byte(body[:n])); err != nil {
		t.Fatal(err)
	}
	return &half{conn, body[n:]}
}

// finish sends the rest and returns the status of the answer.
func (h *half) finish(t *testing.T) int {
	t.Helper()
	if _, err := h.conn.Write([]byte(h.rest)); err != nil {
		t.Fatal(err)
	}
	h.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	r := bufio.NewReader(h.conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		var status int
		if n, _ := fmt.Sscanf(line, "HTTP/1.1 %d", &status); n == 1 && status != http.StatusContinue {
			return status
		}
	}
}

// proposedEntry is a signature with a key of one's own, for the log.
func proposedEntry(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var digest [sha256.Size]byte
	rand.Read(digest[:])
	sig, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"%x"}},"signature":{"content":"%s","publicKey":{"content":"%s"}}}}`,
		digest, b64(sig), b64(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
}
