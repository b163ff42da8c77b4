package durability

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigbox/sigbox/e2e/e2etest"
	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

// archived makes and serves an instance with an archive.
func archived(t *testing.T) (i *e2etest.Instance, archive string) {
	t.Helper()
	root, addr := t.TempDir(), e2etest.FreeAddress(t)
	dir, archive := filepath.Join(root, "instance"), filepath.Join(root, "archive")
	if err := os.Mkdir(archive, 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(root, "sigbox.yaml")
	text := fmt.Sprintf("url: http://%s\nlisten: %s\nstorage: {archive_dir: %s}\n", addr, addr, archive)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	i = e2etest.NewInstance(t, dir, "http://"+addr, "serve", "--dir", dir)
	i.Sigboxd().OK(t, "init", "--dir", dir, "--config", conf)
	i.Start(t)
	return i, archive
}

// passphrase makes the file that a backup's keys are encrypted with.
func passphrase(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(path, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sign adds some signatures to the ledger.
func (l *ledger) sign(t *testing.T, n int) {
	t.Helper()
	client := l.client(1)
	defer client.HTTP.CloseIdleConnections()
	for range n {
		var digest [sha256.Size]byte
		rand.Read(digest[:])
		s, err := client.Sign(t.Context(), digest)
		if err != nil {
			t.Fatal(err)
		}
		l.note(s)
	}
}

// moved is an instance of the same origin in another folder.
func moved(t *testing.T, i *e2etest.Instance) *e2etest.Instance {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "restored")
	return e2etest.NewInstance(t, dir, i.URL, "serve", "--dir", dir)
}

// recorded tells whether the audit record has the entry.
func recorded(t *testing.T, dir string, s *keyless.Signature) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "audit", "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), s.Entry.UUID) {
			return true
		}
	}
	return false
}

type logState struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	Root string `json:"root"`
}

type restored struct {
	Epoch int `json:"epoch"`
	Logs  []struct {
		logState
		Frozen  string `json:"frozen"`
		Missing uint64 `json:"missing"`
	} `json:"logs"`
}

func parse[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

func logsOf(t *testing.T, i *e2etest.Instance) []logState {
	t.Helper()
	return parse[struct{ Logs []logState }](t, i.Sigboxd().OK(t, "status", "--dir", i.Dir, "--json").Stdout).Logs
}

// TestBackupUnderLoad backs up while eight clients sign. Everything that was acknowledged before the backup began is in it: provable, and found by
// a search.
func TestBackupUnderLoad(t *testing.T) {
	i := e2etest.Quickstart(t)
	i.Serve()
	l := newLedger(t, i)
	pass, file := passphrase(t), filepath.Join(t.TempDir(), "backup.tar")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wait := l.burst(ctx, 8)
	e2etest.Eventually(t, time.Minute, "signatures", func() bool { return l.count() >= 40 })
	l.mu.Lock()
	before := slices.Clone(l.signed)
	l.mu.Unlock()
	m := parse[struct {
		Logs []logState `json:"logs"`
	}](t, i.Sigboxd().OK(t, "backup", "--dir", i.Dir, "--out", file, "--with-keys", "--passphrase-file", pass, "--json").Stdout)
	e2etest.Eventually(t, time.Minute, "signatures after the backup", func() bool { return l.count() >= len(before)+20 })
	cancel()
	wait()
	after := logsOf(t, i)
	anchors := filepath.Join(i.Dir, "anchor")

	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Fatalf("%v, %v", st, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := os.ReadFile(filepath.Join(i.Dir, "keys", "passphrase"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), strings.TrimSpace(string(secret))) || strings.Contains(string(data), "BEGIN PRIVATE KEY") {
		t.Fatal("the passphrase, or a key in the clear, is in the backup")
	}

	// Beside the running instance it would be a clone.
	r := moved(t, i)
	r.Sigboxd().ExitsWith(t, 1, "still runs", "restore", "--from", file, "--dir", r.Dir, "--anchor", anchors)
	i.Stop(t)

	t.Run("without an archive", func(t *testing.T) {
		r := moved(t, i)
		said := r.Sigboxd().ExitsWith(t, 3, "missing", "restore", "--from", file, "--dir", r.Dir, "--anchor", anchors, "--passphrase-file", pass, "--json")
		for n, log := range parse[restored](t, said.Stdout).Logs {
			if log.Size != m.Logs[n].Size || log.Root != m.Logs[n].Root || log.Frozen == "" || log.Missing != after[n].Size-log.Size {
				t.Errorf("%+v, the backup has %+v, published was %+v", log, m.Logs[n], after[n])
			}
		}
		r.Spawn(t)
		e2etest.Eventually(t, time.Minute, "the restored instance to answer", func() bool {
			resp, err := http.Get(r.URL + "/healthz")
			if err == nil {
				resp.Body.Close()
			}
			return err == nil
		})
		// Reading goes on, as far as nothing is signed for it.
		for _, s := range before {
			for id, now := range parse[map[string]keyless.LogEntry](t, string(getRaw(t, r.URL+"/api/v1/log/entries/"+s.Entry.UUID))) {
				if id != s.Entry.UUID || !bytes.Equal(now.Body, s.Entry.Body) || now.LogIndex != s.Entry.LogIndex {
					t.Fatalf("entry %s is another one now: %+v", s.Entry.UUID, now)
				}
			}
			l.holdsSearch(t, s)
			l.holdsCertificate(t, s, m.Logs[0].Size, m.Logs[0].Root)
		}
		client := l.client(1)
		client.Token = keyless.SocketTokens(filepath.Join(r.Dir, "run", "admin.sock"), subject, 1)
		if _, err := client.Sign(t.Context(), sha256.Sum256([]byte("frozen"))); err == nil {
			t.Error("a frozen log was signed over")
		}
		r.Stop(t)
	})
	t.Run("with roots that the operator knows", func(t *testing.T) {
		r := moved(t, i)
		args := []string{"restore", "--from", file, "--dir", r.Dir, "--passphrase-file", pass}
		r.Sigboxd().ExitsWith(t, 3, "its anchor has not survived", args...)
		if err := os.RemoveAll(r.Dir); err != nil {
			t.Fatal(err)
		}
		for _, log := range m.Logs {
			args = append(args, "--adopt", fmt.Sprintf("%s=%d:%s", log.Name, log.Size, log.Root))
		}
		r.Sigboxd().OK(t, args...)
		r.Launch(t)
		for n, log := range logsOf(t, r) {
			if log != m.Logs[n] {
				t.Errorf("%+v, the backup has %+v", log, m.Logs[n])
			}
		}
		for _, s := range before {
			l.holdsEntry(t, s)
		}
	})
}

// TestRollForward restores an old backup and follows the archive to the very roots that were published last.
func TestRollForward(t *testing.T) {
	i, archive := archived(t)
	l := newLedger(t, i)
	pass, file := passphrase(t), filepath.Join(t.TempDir(), "backup.tar")
	l.sign(t, 5)
	i.Sigboxd().OK(t, "backup", "--dir", i.Dir, "--out", file, "--with-keys", "--passphrase-file", pass)
	l.sign(t, 10)
	// What was archived before a restart is gone on with.
	i.Stop(t)
	i.Launch(t)
	l.sign(t, 10)
	last := logsOf(t, i)
	e2etest.Eventually(t, time.Minute, "the archive to follow", func() bool {
		st := parse[struct {
			Archive struct{ Sizes map[string]uint64 }
		}](t, i.Sigboxd().OK(t, "status", "--dir", i.Dir, "--json").Stdout)
		return st.Archive.Sizes["rekor"] == last[1].Size && st.Archive.Sizes["ctlog"] == last[0].Size
	})
	// The rows of the search index come right after.
	i.Stop(t)
	anchors := filepath.Join(i.Dir, "anchor")
	if err := os.RemoveAll(filepath.Join(i.Dir, "data")); err != nil {
		t.Fatal(err)
	}

	r := moved(t, i)
	got := parse[restored](t, r.Sigboxd().OK(t, "restore", "--from", file, "--dir", r.Dir, "--archive", archive, "--anchor", anchors, "--passphrase-file", pass, "--json").Stdout)
	for n, log := range got.Logs {
		if log.logState != last[n] || log.Frozen != "" {
			t.Errorf("%+v, published was %+v", log, last[n])
		}
	}
	// So is the record of what was certified.
	for _, s := range l.signed {
		if !recorded(t, r.Dir, s) {
			t.Errorf("entry %s is not in the audit record", s.Entry.UUID)
		}
	}
	r.Launch(t)
	l.instance = r
	l.holds(t)
	l.sign(t, 5)
	l.holds(t)
	if st := parse[struct{ Epoch int }](t, r.Sigboxd().OK(t, "status", "--dir", r.Dir, "--json").Stdout); st.Epoch != 1 || got.Epoch != 1 {
		t.Errorf("epoch %d and %d", st.Epoch, got.Epoch)
	}
	// Backups of it work too, and the one that was replaced stays out of the way.
	r.Sigboxd().OK(t, "backup", "--dir", r.Dir, "--out", filepath.Join(t.TempDir(), "again.tar"))
	r.Stop(t)
	i.Sigboxd().ExitsWith(t, 1, "restored elsewhere", "serve", "--dir", i.Dir)
}

// TestBackupAtRest backs up an instance that does not run.
func TestBackupAtRest(t *testing.T) {
	i := e2etest.Quickstart(t)
	i.Serve()
	l := newLedger(t, i)
	l.sign(t, 3)
	last := logsOf(t, i)
	i.Stop(t)
	pass, file := passphrase(t), filepath.Join(t.TempDir(), "backup.tar")
	i.Sigboxd().OK(t, "backup", "--dir", i.Dir, "--out", file, "--with-keys", "--passphrase-file", pass)
	r := moved(t, i)
	r.Sigboxd().OK(t, "restore", "--from", file, "--dir", r.Dir, "--anchor", filepath.Join(i.Dir, "anchor"), "--passphrase-file", pass)
	r.Launch(t)
	if now := logsOf(t, r); !slices.Equal(now, last) {
		t.Errorf("%+v, was %+v", now, last)
	}
	l.instance = r
	l.holds(t)
}

// TestRestoreRefuses has one row for each thing that is not as it was written, or not of this instance.
func TestRestoreRefuses(t *testing.T) {
	i, archive := archived(t)
	other, foreign := archived(t)
	other.Stop(t)
	l := newLedger(t, i)
	l.sign(t, 2)
	dir := t.TempDir()
	file := filepath.Join(dir, "backup.tar")
	i.Sigboxd().OK(t, "backup", "--dir", i.Dir, "--out", file)
	i.Sigboxd().ExitsWith(t, 2, "exists", "backup", "--dir", i.Dir, "--out", file)
	i.Sigboxd().ExitsWith(t, 2, "go together", "backup", "--dir", i.Dir, "--out", file+"2", "--with-keys")
	i.Stop(t)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(name string, change func([]byte) []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, change(slices.Clone(whole)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	anchors := filepath.Join(i.Dir, "anchor")
	for _, row := range []struct {
		name, word string
		code       int
		args       []string
	}{
		{"cut in the manifest", "damaged", 1, []string{"--from", changed("a", func(b []byte) []byte { return b[:1000] })}},
		{"cut at the end", "damaged", 1, []string{"--from", changed("b", func(b []byte) []byte { return b[:len(b)-3000] })}},
		{"empty", "damaged", 1, []string{"--from", changed("c", func(b []byte) []byte { return nil })}},
		{"more behind it", "more in it", 1, []string{"--from", changed("d", func(b []byte) []byte { return append(b[:len(b)-1024], b[:2048]...) })}},
		{"another instance's archive", "another instance's", 1, []string{"--from", file, "--archive", foreign}},
		{"another instance's anchors", "anchor is missing", 1, []string{"--from", file, "--anchor", filepath.Join(other.Dir, "anchor")}},
		{"no archive there", "no archive", 1, []string{"--from", file, "--archive", dir}},
		{"no anchors there", "missing", 1, []string{"--from", file, "--anchor", filepath.Join(dir, "none")}},
		{"another root than the anchored one", "is believed", 1, []string{"--from", file, "--archive", archive, "--anchor", anchors, "--adopt", "rekor=1:" + strings.Repeat("00", 32)}},
		{"not a root", "LOG=SIZE:ROOT", 2, []string{"--from", file, "--adopt", "rekor=1"}},
		{"no such file", "no such file", 1, []string{"--from", filepath.Join(dir, "none")}},
	} {
		t.Run(row.name, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), "target")
			i.Sigboxd().ExitsWith(t, row.code, row.word, append([]string{"restore", "--dir", target}, row.args...)...)
			if _, err := os.Stat(target); err == nil {
				t.Error("something was left in the target")
			}
		})
	}
	t.Run("target not empty", func(t *testing.T) {
		i.Sigboxd().ExitsWith(t, 2, "never overwrites", "restore", "--from", file, "--dir", i.Dir)
	})
	t.Run("bits", func(t *testing.T) {
		// Anywhere: padding of the tar format apart, nothing changes unnoticed.
		for range 40 {
			at := mathrand.IntN(len(whole))
			if whole[at] == 0 && at > 1<<20 {
				continue
			}
			path := changed("bit", func(b []byte) []byte { b[at] ^= 1; return b })
			target := filepath.Join(t.TempDir(), "target")
			if r := i.Sigboxd().Run(t, "restore", "--from", path, "--dir", target); r.Code != 1 {
				t.Errorf("byte %d: %v", at, r)
			}
		}
	})
	t.Run("a different history", func(t *testing.T) {
		target := filepath.Join(t.TempDir(), "target")
		i.Sigboxd().ExitsWith(t, 3, "another history", "restore", "--from", file, "--dir", target,
			"--adopt", "rekor=1:"+strings.Repeat("00", 32), "--adopt", "ctlog=1:"+strings.Repeat("11", 32))
	})
}

// TestKillDuringBackup kills the command at any moment: what has the name of a backup is one.
func TestKillDuringBackup(t *testing.T) {
	i := e2etest.Quickstart(t)
	dir := t.TempDir()
	made := 0
	for n := range 20 {
		file := filepath.Join(dir, fmt.Sprintf("%d.tar", n))
		cmd := exec.Command(i.Sigboxd().Path, "backup", "--dir", i.Dir, "--out", file)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(mathrand.IntN(1000))*time.Millisecond, func() { cmd.Process.Kill() })
		cmd.Wait()
		if _, err := os.Stat(file); err != nil {
			continue
		}
		made++
		i.Sigboxd().ExitsWith(t, 3, "frozen", "restore", "--from", file, "--dir", filepath.Join(dir, fmt.Sprint(n)))
	}
	t.Logf("%d of 20 were finished", made)
	i.Healthy(t)
	i.Sigboxd().OK(t, "backup", "--dir", i.Dir, "--out", filepath.Join(dir, "last.tar"))
}

// TestBackupOntoFullDisk leaves nothing that could be taken for a backup.
func TestBackupOntoFullDisk(t *testing.T) {
	i := e2etest.Quickstart(t)
	dir := t.TempDir()
	script := fmt.Sprintf("mount -t tmpfs -o size=512k none %[1]s && { %[2]s backup --dir %[3]s --out %[1]s/b.tar; echo code=$?; ls -A %[1]s; }", dir, i.Sigboxd().Path, i.Dir)
	cmd := exec.Command("sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "no space left") || !strings.HasSuffix(string(out), "code=1\n") {
		t.Errorf("%v: %s", err, out)
	}
	i.Healthy(t)
}

var backupEntries = flag.Int("backup-entries", 1000, "how many signatures the log has in BenchmarkSigningDuringBackup")

// BenchmarkSigningDuringBackup measures a signature with and without a backup under way, in turns.
func BenchmarkSigningDuringBackup(b *testing.B) {
	i := e2etest.Quickstart(b)
	token := keyless.SocketTokens(filepath.Join(i.Dir, "run", "admin.sock"), subject, 4)
	client := keyless.NewClient(keyless.Services{Fulcio: i.URL, Rekor: i.URL, TSA: i.URL}, token, 8)
	sign := func() time.Duration {
		var digest [sha256.Size]byte
		rand.Read(digest[:])
		s, err := client.Sign(b.Context(), digest)
		if err != nil {
			b.Fatal(err)
		}
		return s.Parts.Total
	}
	fill := make(chan struct{}, *backupEntries)
	for range *backupEntries {
		fill <- struct{}{}
	}
	close(fill)
	done := make(chan error, 8)
	for range 8 {
		go func() {
			for range fill {
				var digest [sha256.Size]byte
				rand.Read(digest[:])
				if _, err := client.Sign(b.Context(), digest); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	p95 := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)*95/100]) / float64(time.Millisecond)
	}
	dir := b.TempDir()
	var alone, beside []time.Duration
	backups := 0
	b.ResetTimer()
	for range b.N {
		for range 100 {
			alone = append(alone, sign())
		}
		for len(beside) < len(alone) {
			backups++
			ended := make(chan error, 1)
			cmd := exec.Command(i.Sigboxd().Path, "backup", "--dir", i.Dir, "--out", filepath.Join(dir, fmt.Sprint(backups)))
			go func() { ended <- cmd.Run() }()
			for running := true; running; {
				took := sign()
				select {
				case err := <-ended:
					if running = false; err != nil {
						b.Fatal(err)
					}
				default:
					beside = append(beside, took)
				}
			}
		}
	}
	b.ReportMetric(p95(alone), "p95-ms-alone")
	b.ReportMetric(p95(beside), "p95-ms-during-backup")
	b.ReportMetric(float64(backups), "backups")
}
