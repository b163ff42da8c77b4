package issuer

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

func newJournal(t *testing.T, now time.Time) *journal {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ci.journal")
	if err := createJournal(path); err != nil {
		t.Fatal(err)
	}
	return reopen(t, path, now)
}

func reopen(t *testing.T, path string, now time.Time) *journal {
	t.Helper()
	j, err := openJournal(path, now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.close() })
	return j
}

func numbered(n uint64) (id tokenID) {
	binary.BigEndian.PutUint64(id[:], n)
	return id
}

func redeemMany(t *testing.T, j *journal, from, to uint64, expiry int64) {
	t.Helper()
	var wg sync.WaitGroup
	for n := from; n < to; n++ {
		wg.Go(func() {
			if err := j.redeem(t.Context(), numbered(n), expiry); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// The journal stays as large as what it must remember, and a clock that is set
// back does not revive what it dropped.
func TestJournalForgets(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	j := newJournal(t, now)
	old, fresh := now.Add(time.Minute).Unix(), now.Add(time.Hour).Unix()
	redeemMany(t, j, 0, 3000, old)
	redeemMany(t, j, 3000, 3100, fresh)
	before, err := os.Stat(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.forget(now); err != nil {
		t.Fatal(err)
	}
	if err := j.redeem(t.Context(), numbered(0), old); !errors.Is(err, ErrReplayed) {
		t.Errorf("before its expiry a token is remembered: %v", err)
	}

	if err := j.forget(now.Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(j.path)
	if err != nil {
		t.Fatal(err)
	}
	if len(j.spent) != 100 || after.Size() >= before.Size()/10 {
		t.Errorf("%d ids and %d bytes are left of %d bytes", len(j.spent), after.Size(), before.Size())
	}
	redeemMany(t, j, 4000, 4100, fresh)
	check := func(j *journal) {
		t.Helper()
		for _, row := range []struct {
			id     uint64
			expiry int64
			want   error
		}{{0, old, ErrExpired}, {2999, old, ErrExpired}, {3000, fresh, ErrReplayed}, {4099, fresh, ErrReplayed}} {
			if err := j.redeem(t.Context(), numbered(row.id), row.expiry); !errors.Is(err, row.want) {
				t.Errorf("%d: %v, want %v", row.id, err, row.want)
			}
		}
	}
	check(j)
	if err := j.close(); err != nil {
		t.Fatal(err)
	}
	check(reopen(t, j.path, now)) // the clock was set back while it was closed
}

// A full disk refuses the token and recovers.
func TestJournalDiskFull(t *testing.T) {
	j := newJournal(t, time.Now())
	expiry := time.Now().Add(time.Minute).Unix()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	disk := j.file
	j.file = full
	for range 2 {
		if err := j.redeem(t.Context(), numbered(1), expiry); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("on a full disk: %v", err)
		}
	}
	j.file = disk
	if err := j.redeem(t.Context(), numbered(1), expiry); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := j.redeem(t.Context(), numbered(1), expiry); !errors.Is(err, ErrReplayed) {
		t.Errorf("a second time: %v", err)
	}
}

// After a failed write nothing is redeemed any more, and Run says so.
func TestJournalBreaks(t *testing.T) {
	j := newJournal(t, time.Now())
	expiry := time.Now().Add(time.Minute).Unix()
	readOnly, err := os.Open(j.path)
	if err != nil {
		t.Fatal(err)
	}
	disk := j.file
	j.file = readOnly
	if err := j.redeem(t.Context(), numbered(1), expiry); err == nil {
		t.Fatal("redeemed without a write")
	}
	j.file = disk
	defer readOnly.Close()
	if err := j.redeem(t.Context(), numbered(2), expiry); err == nil {
		t.Error("redeemed after a failed write")
	}
	c := &CI{cfg: CIConfig{Now: time.Now}, spent: j}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := c.Run(ctx); err == nil {
		t.Error("Run hides a broken journal")
	}
}
