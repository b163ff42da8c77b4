package appliance_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/appliance"
)

// sign signs a blob as any client would, which adds an entry to both logs.
func sign(t *testing.T, dir, url string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	st, err := appliance.AskStatus(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	profile, err := client.Home{Dir: t.TempDir()}.Init(ctx, client.InitOptions{URL: url, RootChecksum: st.RootSHA256})
	if err != nil {
		t.Fatal(err)
	}
	minted, err := appliance.AskToken(t.Context(), dir, appliance.TokenRequest{Subject: "ci@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	token, err := client.NewToken(minted.Token)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := profile.Signer(ctx, token)
	if err != nil {
		return err
	}
	_, err = signer.SignBlob(ctx, strings.NewReader(time.Now().String()))
	return err
}

func mustSign(t *testing.T, dir, url string, times int) {
	t.Helper()
	for range times {
		if err := sign(t, dir, url); err != nil {
			t.Fatal(err)
		}
	}
}

// logs is the state of both logs by name.
func logs(t *testing.T, dir string) map[string]appliance.LogStatus {
	t.Helper()
	st, err := appliance.AskStatus(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]appliance.LogStatus{}
	for _, l := range st.Logs {
		byName[l.Name] = l
	}
	if len(byName) != 2 {
		t.Fatalf("%+v", st)
	}
	return byName
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(to, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// demandFrozen sees that an instance whose logs are both frozen signs nothing,
// says why, and lets itself be read.
func demandFrozen(t *testing.T, dir, url, cause, why string) {
	t.Helper()
	if code, body := get(t, url+"/readyz"); code != 503 || !strings.Contains(string(body), why) {
		t.Errorf("readyz: %d %s, want %q", code, body, why)
	}
	for name, l := range logs(t, dir) {
		if l.Frozen == nil || l.Frozen.Cause != cause || !strings.Contains(l.Frozen.Reason, why) {
			t.Errorf("%s: %+v, want cause %s", name, l.Frozen, cause)
		}
	}
	chain, err := json.Marshal(map[string][]string{"chain": {base64.StdEncoding.EncodeToString([]byte("x"))}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api/v2/signingCert", "/api/v1/signingCert", "/ctlog/ct/v1/add-chain", "/ctlog/ct/v1/add-pre-chain"} {
		resp, err := http.Post(url+path, "application/json", bytes.NewReader(chain))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 503 {
			t.Errorf("POST %s: %d", path, resp.StatusCode)
		}
	}
	// Tree heads are signed anew for each who asks.
	for _, path := range []string{"/api/v1/log", "/ctlog/ct/v1/get-sth"} {
		if code, body := get(t, url+path); code != 503 || !strings.Contains(string(body), "frozen") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for _, path := range []string{
		"/ctlog/ct/v1/get-entries?start=0&end=0", "/ctlog/ct/v1/get-roots", "/api/v1/log/publicKey",
		"/tuf/timestamp.json", "/trust/trusted_root.json", "/api/v2/trustBundle",
	} {
		if code, body := get(t, url+path); code != 200 {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	code, body := get(t, url+"/api/v1/log/entries?logIndex=0")
	var entries map[string]struct {
		Body         string
		Verification any
	}
	if err := json.Unmarshal(body, &entries); err != nil || code != 200 || len(entries) != 1 {
		t.Fatalf("reading an entry: %d %s", code, body)
	}
	for id, e := range entries {
		if e.Body == "" || e.Verification != nil {
			t.Errorf("entry %s: %s", id, body)
		}
		if code, body := get(t, url+"/api/v1/log/entries/"+id); code != 200 || strings.Contains(string(body), "verification") {
			t.Errorf("by id: %d %s", code, body)
		}
		resp, err := http.Post(url+"/api/v1/log/entries/retrieve", "application/json", strings.NewReader(`{"logIndexes":[0]}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("retrieve: %d", resp.StatusCode)
		}
	}
}

func verdicts(t *testing.T, dir string) map[string]appliance.Check {
	t.Helper()
	checks, err := appliance.Diagnose(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]appliance.Check{}
	for _, c := range checks {
		if _, ok := byName[c.Name]; !ok {
			byName[c.Name] = c
		}
	}
	return byName
}

// TestOldBackupPutBack: the way in which real logs have got two histories
// (TrustAsia 2021, Venafi).
func TestOldBackupPutBack(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	mustSign(t, dir, url, 2)
	stop()
	data, old, newest := filepath.Join(dir, "data", "logs"), filepath.Join(t.TempDir(), "old"), filepath.Join(t.TempDir(), "newest")
	copyDir(t, data, old)
	stop = serve(t, dir)
	mustSign(t, dir, url, 3)
	was := logs(t, dir)
	stop()
	copyDir(t, data, newest)

	copyDir(t, old, data)
	if l := logs(t, dir)["rekor"]; l.Frozen == nil || l.Size != 2 || l.Anchor.Size != 5 {
		t.Errorf("before it is served: %+v", l)
	}
	if c := verdicts(t, dir)["log rekor"]; c.Verdict != appliance.Fail || c.Do == "" {
		t.Errorf("doctor: %+v", c)
	}
	reports, err := appliance.VerifyLogs(t.Context(), dir, appliance.VerifyOptions{})
	if err != nil || len(reports) != 2 || reports[0].Sound() || len(reports[0].Findings) != 0 || reports[0].Size != 2 {
		t.Errorf("%+v, %v", reports, err)
	}
	rekor := logs(t, dir)["rekor"]
	root, _ := hex.DecodeString(rekor.Root)
	if err := appliance.AdoptAnchor(t.Context(), dir, "rekor", 2, root, nil); !errors.Is(err, appliance.ErrOlderRoot) {
		t.Errorf("adopting the older root: %v", err)
	}
	stop = serve(t, dir)
	demandFrozen(t, dir, url, "behind", "older copy")
	if err := sign(t, dir, url); err == nil {
		t.Error("a signature was made")
	}
	if reports, err = appliance.VerifyLogs(t.Context(), dir, appliance.VerifyOptions{}); err != nil || reports[1].Sound() {
		t.Errorf("while it is served: %+v, %v", reports, err)
	}
	if c := verdicts(t, dir)["log ctlog"]; c.Verdict != appliance.Fail {
		t.Errorf("doctor: %+v", c)
	}
	stop()

	// Nothing was spoiled: with the newest copy it goes on.
	copyDir(t, newest, data)
	serve(t, dir)
	for name, l := range logs(t, dir) {
		if l.Frozen != nil || l.Root != was[name].Root {
			t.Errorf("%s: %+v, was %+v", name, l, was[name])
		}
	}
	mustSign(t, dir, url, 1)
}

// TestAnotherHistory: as many entries as were published and more, but others.
func TestAnotherHistory(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	mustSign(t, dir, url, 1)
	stop()
	data, anchors := filepath.Join(dir, "data", "logs"), filepath.Join(dir, "anchor")
	before, beforeAnchors := filepath.Join(t.TempDir(), "logs"), filepath.Join(t.TempDir(), "anchor")
	copyDir(t, data, before)
	copyDir(t, anchors, beforeAnchors)
	stop = serve(t, dir)
	mustSign(t, dir, url, 2)
	stop()
	published := filepath.Join(t.TempDir(), "published")
	copyDir(t, anchors, published)
	for _, more := range []int{2, 4} {
		// A clone of then goes on, and its databases come here.
		copyDir(t, before, data)
		copyDir(t, beforeAnchors, anchors)
		stop = serve(t, dir)
		mustSign(t, dir, url, more)
		stop()
		copyDir(t, published, anchors)
		stop = serve(t, dir)
		demandFrozen(t, dir, url, "different", "was published")
		stop()
	}
}

// TestAnchorLost: the logs are read, and go on with an anchor that an operator
// has vouched for and the entries reproduce.
func TestAnchorLost(t *testing.T) {
	for name, lose := range map[string]func(anchors string) error{
		"folder gone":   os.RemoveAll,
		"files gone":    func(a string) error { return errors.Join(os.RemoveAll(a), os.Mkdir(a, 0o700)) },
		"files damaged": func(a string) error { return overwrite(a, bytes.Repeat([]byte("x"), 8192)) },
		"files empty":   func(a string) error { return overwrite(a, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			anchors := filepath.Join(t.TempDir(), "elsewhere", "anchors")
			dir, url := initialise(t, time.Now(), "storage: {anchor_dir: "+anchors+"}\n")
			stop := serve(t, dir)
			mustSign(t, dir, url, 3)
			was := logs(t, dir)
			stop()
			if err := lose(anchors); err != nil {
				t.Fatal(err)
			}
			cause := "no-anchor"
			if strings.Contains(name, "files e") || strings.Contains(name, "damaged") {
				cause = "anchor"
			}
			stop = serve(t, dir)
			demandFrozen(t, dir, url, cause, "anchor")
			root, err := hex.DecodeString(was["rekor"].Root)
			if err != nil {
				t.Fatal(err)
			}
			adopt := func(log string, size uint64, root []byte) error {
				return appliance.AdoptAnchor(t.Context(), dir, log, size, root, nil)
			}
			if err := adopt("rekor", 3, root); err == nil {
				t.Error("adopted while it is served")
			}
			stop()
			for what, err := range map[string]error{
				"a root that is not reproduced": adopt("rekor", 3, bytes.Repeat([]byte{1}, 32)),
				"more than there is":            adopt("rekor", 4, root),
				"the root of another size":      adopt("rekor", 2, root),
			} {
				if !errors.Is(err, appliance.ErrNotReproduced) {
					t.Errorf("adopting %s: %v", what, err)
				}
			}
			for _, l := range was {
				root, err := hex.DecodeString(l.Root)
				if err != nil {
					t.Fatal(err)
				}
				if err := adopt(l.Name, l.Size, root); err != nil {
					t.Errorf("adopting %s: %v", l.Name, err)
				}
			}
			serve(t, dir)
			if code, body := get(t, url+"/readyz"); code != 200 {
				t.Errorf("readyz: %d %s", code, body)
			}
			mustSign(t, dir, url, 1)
		})
	}
}

func overwrite(dir string, data []byte) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.anchor"))
	if err == nil && len(files) != 2 {
		err = fmt.Errorf("%v", files)
	}
	for _, f := range files {
		err = errors.Join(err, os.WriteFile(f, data, 0o600))
	}
	return err
}

// TestAnchorOfAnother: anchors say whose they are.
func TestAnchorOfAnother(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	other, _ := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	mustSign(t, dir, url, 1)
	stop()
	theirs, err := filepath.Glob(filepath.Join(other, "anchor", "*.anchor"))
	if err != nil || len(theirs) != 2 {
		t.Fatal(theirs, err)
	}
	ours, err := filepath.Glob(filepath.Join(dir, "anchor", "*.anchor"))
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range ours {
		data, err := os.ReadFile(theirs[i])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	serve(t, dir)
	demandFrozen(t, dir, url, "anchor", "another log")
}

// TestCloneOnOneMachine: two instances can not share anchors at a time.
func TestCloneOnOneMachine(t *testing.T) {
	anchors := filepath.Join(t.TempDir(), "anchors")
	dir, url := initialise(t, time.Now(), "storage: {anchor_dir: "+anchors+"}\n")
	clone := filepath.Join(t.TempDir(), "clone")
	copyDir(t, dir, clone)
	stop := serve(t, dir)
	mustSign(t, dir, url, 1)
	if _, err := appliance.Open(t.Context(), clone, slog.New(slog.DiscardHandler)); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("the clone beside its original: %v", err)
	}
	stop()
	serve(t, clone)
	if l := logs(t, clone)["rekor"]; l.Frozen == nil || l.Frozen.Cause != "behind" {
		t.Errorf("the clone after its original: %+v", l.Frozen)
	}
}

// TestFlippedBit: found at start, named, and not signed over.
func TestFlippedBit(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	stop := serve(t, dir)
	mustSign(t, dir, url, 3)
	st, err := appliance.AskStatus(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	for _, l := range st.Logs {
		path := filepath.Join(dir, "data", "logs", fmt.Sprintf("tree-%d.db", l.TreeID))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		mark := []byte(`"kind":"hashedrekord"`)
		if l.Name == "ctlog" {
			mark = []byte("sigbox intermediate")
		}
		at := bytes.Index(data, mark)
		if at < 0 {
			t.Fatal("no entry in", path)
		}
		data[at] ^= 1
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := appliance.VerifyLogs(t.Context(), dir, appliance.VerifyOptions{Logs: []string{"rekor"}})
	if err != nil || len(reports) != 1 || len(reports[0].Findings) != 1 {
		t.Fatalf("%+v, %v", reports, err)
	}
	if f := reports[0].Findings[0]; f.What != "leaf value" || f.Leaf == nil || !strings.Contains(f.File, "tree-") {
		t.Errorf("%+v", f)
	}
	serve(t, dir)
	for name, l := range logs(t, dir) {
		if l.Frozen == nil || l.Frozen.Cause != "damaged" || len(l.Frozen.Findings) != 1 {
			t.Errorf("%s: %+v", name, l.Frozen)
		}
	}
	if code, body := get(t, url+"/ctlog/ct/v1/get-sth"); code != 503 {
		t.Errorf("a tree head: %d %s", code, body)
	}
	if c := verdicts(t, dir)["log ctlog"]; c.Verdict != appliance.Fail {
		t.Errorf("doctor: %+v", c)
	}
}

func TestScrubIsReported(t *testing.T) {
	dir, url := initialise(t, time.Now(), "log: {scrub_interval: 20ms}\n")
	serve(t, dir)
	mustSign(t, dir, url, 2)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		l := logs(t, dir)
		r, c := l["rekor"].Scrub, l["ctlog"].Scrub
		if r != nil && c != nil && r.CompletedSize == 2 && c.CompletedSize == 2 && r.Passes > 1 && r.Error == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v, %+v", r, c)
		}
	}
}

// TestVerifyWhileServing goes through the administration socket.
func TestVerifyWhileServing(t *testing.T) {
	dir, url := initialise(t, time.Now(), "")
	serve(t, dir)
	mustSign(t, dir, url, 2)
	progress := map[string]uint64{}
	reports, err := appliance.VerifyLogs(t.Context(), dir, appliance.VerifyOptions{Progress: func(log string, done, size uint64) { progress[log] = done }})
	if err != nil || len(reports) != 2 {
		t.Fatalf("%+v, %v", reports, err)
	}
	for _, r := range reports {
		if !r.Sound() || r.Leaves != 2 || r.Size != 2 || progress[r.Name] != 2 || r.Anchor.Size != 2 || r.Anchor.Root != r.Root {
			t.Errorf("%+v, progress %v", r, progress)
		}
	}
	if _, err := appliance.VerifyLogs(t.Context(), dir, appliance.VerifyOptions{Logs: []string{"nolog"}}); !errors.Is(err, appliance.ErrNoLog) {
		t.Errorf("an unknown log: %v", err)
	}
	for name, c := range verdicts(t, dir) {
		if c.Verdict == appliance.Fail || c.Verdict == appliance.Unknown {
			t.Errorf("doctor: %s: %+v", name, c)
		}
	}
}
