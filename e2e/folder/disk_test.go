package folder

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

// signer signs through an instance that may see its files elsewhere.
func signer(i *e2etest.Instance, dir string) *keyless.Client {
	return keyless.NewClient(keyless.Services{Fulcio: i.URL, Rekor: i.URL, TSA: i.URL},
		keyless.SocketTokens(filepath.Join(dir, "run", "admin.sock"), "job@example.com", 1), 1)
}

func TestNotWritable(t *testing.T) {
	i := made(t)
	i.OnSmallFS(t, "ro")
	i.Spawn(t)
	if code := i.Wait(t, 30*time.Second); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if log := i.Log(t); !strings.Contains(log, "sigboxd: error: ") || !strings.Contains(log, "read-only file system") {
		t.Errorf("the reason is not given: %s", log)
	}
}

// TestInitOnFullDisk: an instance that could not be completed is not taken for
// one.
func TestInitOnFullDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "small", "instance")
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	addr := e2etest.FreeAddress(t)
	i := e2etest.NewInstance(t, dir, "http://"+addr, "init", "--dir", dir, "--url", "http://"+addr, "--listen", addr)
	i.OnSmallFS(t, "size=100k")
	i.Spawn(t)
	if code := i.Wait(t, 30*time.Second); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if log := i.Log(t); !strings.Contains(log, "sigboxd: error: ") || !strings.Contains(log, "no space") && !strings.Contains(log, "full") {
		t.Errorf("the reason is not given: %s", log)
	}
}

// TestFullDisk fills the disk under a serving instance twice: to below the
// reserve, where it must stop promising while it still can keep promises, and
// to the last byte, with the reserve turned off, where writes fail. It may end
// then, but never lie; and with space again everything promised is there.
func TestFullDisk(t *testing.T) {
	for _, c := range []struct {
		name, config string
		leave        int64 // bytes
	}{
		{"below the reserve", "", 16 << 20},
		{"to the last byte", "limits:\n  min_free_bytes: 1", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := made(t)
			if c.config != "" {
				edit(t, filepath.Join(i.Dir, "sigbox.yaml"), appended(c.config))
			}
			i.OnSmallFS(t, "size=256m")
			i.Launch(t)
			inside := i.Inside(i.Dir)
			client := signer(i, inside)
			ctx := context.Background()
			var kept []*keyless.Signature
			for range 3 {
				kept = append(kept, mustSign(t, client))
			}
			ballast := filepath.Join(inside, "ballast")
			fill(t, ballast, c.leave)

			refused := false
			e2etest.Eventually(t, time.Minute, "signing to be refused", func() bool {
				s, err := client.Sign(ctx, digest())
				if err == nil {
					kept = append(kept, s)
					return false
				}
				refused = true
				var status *keyless.StatusError
				if errors.As(err, &status) && (status.Code < 500 || strings.TrimSpace(status.Body) == "") {
					t.Errorf("a full disk is the server's trouble and has a reason: %v", err)
				}
				return true
			})
			if !refused {
				t.Fatal("signatures go on with a full disk")
			}
			if i.Running() {
				e2etest.Eventually(t, 30*time.Second, "/readyz to say no", func() bool {
					resp, err := http.Get(i.URL + "/readyz")
					if err != nil {
						return !i.Running()
					}
					defer resp.Body.Close()
					io.Copy(io.Discard, resp.Body)
					return resp.StatusCode == http.StatusServiceUnavailable
				})
			}
			if !i.Running() {
				// Ended rather than go on in a state it does not know. The
				// memory file system went with it: nothing more to look at.
				if log := i.Log(t); !strings.Contains(log, "sigboxd: error: ") {
					t.Errorf("it ended and did not say why: %s", log)
				}
				return
			}
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			e2etest.Eventually(t, time.Minute, "signing to go on with space again", func() bool {
				s, err := client.Sign(ctx, digest())
				if err == nil {
					kept = append(kept, s)
				}
				return err == nil
			})
			for _, s := range kept {
				resp, err := http.Get(i.URL + "/api/v1/log/entries/" + s.Entry.UUID)
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusOK {
					t.Errorf("entry %s was acknowledged and is not there: %s", s.Entry.UUID, resp.Status)
				}
			}
			i.Healthy(t)
		})
	}
}

func mustSign(t *testing.T, c *keyless.Client) *keyless.Signature {
	t.Helper()
	s, err := c.Sign(context.Background(), digest())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func digest() (d [32]byte) {
	rand.Read(d[:])
	return d
}

// fill writes a file until only so many bytes are left on its disk.
func fill(t *testing.T, path string, leave int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		free := int64(st.Bavail) * st.Bsize
		if free <= leave {
			return
		}
		n := min(int64(len(block)), free-leave)
		if _, err := f.Write(block[:n]); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
