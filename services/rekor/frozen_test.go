package rekor

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// A frozen log is read on, and nothing that leaves is signed.
func TestFrozen(t *testing.T) {
	var frozen atomic.Bool
	cfg := newConfig(t)
	cfg.Frozen = func() error {
		if frozen.Load() {
			return errors.New("the log is frozen: an older copy")
		}
		return nil
	}
	i := start(t, cfg)
	signer := newIdentity(t, "a@example.com")
	first := signer.hashedrekord(t, []byte("first"))
	id, _ := i.create(first)
	signed := "SignedEntryTimestamp"
	if a := i.get(createPath + "/" + id); !strings.Contains(strings.ToLower(string(a.body)), strings.ToLower(signed)) {
		t.Fatalf("no promise: %s", a.body)
	}

	frozen.Store(true)
	for name, a := range map[string]answer{
		"a new entry":           i.post(createPath, signer.hashedrekord(t, []byte("second"))),
		"one that is there":     i.post(createPath, first),
		"the signed tree head":  i.get("/api/v1/log"),
		"the tree head, stable": i.get("/api/v1/log?stable=true"),
	} {
		if a.code != http.StatusServiceUnavailable || !strings.Contains(string(a.body), "older copy") {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	for name, a := range map[string]answer{
		"by index": i.get(createPath + "?logIndex=0"),
		"by id":    i.get(createPath + "/" + id),
		"query":    i.post(createPath+"/retrieve", map[string]any{"logIndexes": []int{0}, "entryUUIDs": []string{id}}),
	} {
		body := string(a.body)
		if a.code != http.StatusOK || !strings.Contains(body, id) || !strings.Contains(body, `"body"`) {
			t.Errorf("%s: %d %s", name, a.code, body)
		}
		for _, no := range []string{"verification", "signedEntryTimestamp", "checkpoint", b64(notSigned)} {
			if strings.Contains(body, no) {
				t.Errorf("%s has %s: %s", name, no, body)
			}
		}
	}
	if a := i.get("/api/v1/log/proof?firstSize=1&lastSize=1"); a.code != http.StatusOK {
		t.Errorf("a proof: %d %s", a.code, a.body)
	}
	if found := i.search(map[string]any{"hash": sha256Hex([]byte("first"))}); len(found) != 1 {
		t.Errorf("searching: %v", found)
	}

	frozen.Store(false)
	i.create(signer.hashedrekord(t, []byte("second")))
}

// A log that is frozen from the start is served all the same.
func TestStartsFrozen(t *testing.T) {
	cfg := newConfig(t)
	cfg.Frozen = func() error { return errors.New("frozen") }
	i := start(t, cfg)
	if a := i.get("/api/v1/log/publicKey"); a.code != http.StatusOK {
		t.Errorf("%d %s", a.code, a.body)
	}
}
