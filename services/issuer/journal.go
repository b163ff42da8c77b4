package issuer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/internal/durable"
)

// The journal remembers which token ids were redeemed. It is a file of 32-byte
// records, the first of which is a header; records never straddle a disk
// sector, so that one is either written or not. The file is grown by blocks of
// zeros ahead of use, which keeps its size, and with it the file system's own
// journal, out of almost every sync.
const (
	recordSize = 32
	blockSize  = 64 << 10
	journalTag = "sigbox/ci/1\n"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type tokenID [16]byte

// journal is safe for concurrent use.
type journal struct {
	path string
	lock *os.File

	// writing is held by whoever writes to the file. Redeemers queue on it, and
	// the first to get it writes for all who queued: that is the group commit.
	writing sync.Mutex
	file    *os.File
	end     int64 // where the next record goes
	size    int64 // end of the space that is grown ahead

	mu      sync.Mutex // guards what follows; never held during I/O
	spent   map[tokenID]int64
	pending *batch
	// forgotten is the latest expiry among the ids already dropped. A token that
	// expires no later is refused, so that a clock set back cannot revive one.
	forgotten int64
	failure   error

	broken chan struct{} // closed when failure is set by an I/O error
}

type batch struct {
	records []byte
	written bool
	err     error
}

func createJournal(path string) error {
	return durable.WriteNew(path, header(0), 0o600)
}

// openJournal takes the journal for this process alone and reads it.
func openJournal(path string, now time.Time) (*journal, error) {
	lock, err := lockFile(path)
	if err != nil {
		return nil, err
	}
	j := &journal{path: path, lock: lock, spent: map[tokenID]int64{}, pending: &batch{}, broken: make(chan struct{})}
	if err := j.load(); err != nil {
		return nil, errors.Join(err, j.close())
	}
	j.drop(now.Unix())
	return j, nil
}

// lockFile locks a file beside the journal, because compaction replaces the
// journal itself. The kernel frees the lock when the process ends, however.
func lockFile(path string) (*os.File, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err // before the lock file is made: nothing appears in a folder that init did not fill
	}
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s, is it in use by another process: %w", path, err), f.Close())
	}
	return f, nil
}

// load reads the whole journal. Zeros are space not used yet, also between
// records: a batch torn by a power cut leaves holes, and nothing in that batch
// was acknowledged. A record that is neither empty nor whole is damage that no
// crash explains, and the ids it held might be replayed, so that is an error.
func (j *journal) load() (err error) {
	// Each write is durable when it returns.
	j.file, err = os.OpenFile(j.path, os.O_RDWR|syscall.O_DSYNC, 0)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(j.file)
	if err != nil {
		return err
	}
	if len(data) < recordSize || string(data[:len(journalTag)]) != journalTag || !intact(data[:recordSize]) {
		return fmt.Errorf("%s is not a journal of this version", j.path)
	}
	j.forgotten = int64(binary.BigEndian.Uint64(data[16:]))
	j.end = recordSize
	for at := recordSize; at+recordSize <= len(data); at += recordSize {
		record := data[at : at+recordSize]
		switch {
		case [recordSize]byte(record) == [recordSize]byte{}:
		case intact(record):
			j.spent[tokenID(record)] = int64(binary.BigEndian.Uint64(record[16:]))
			j.end = int64(at + recordSize)
		default:
			return fmt.Errorf("%s is damaged at byte %d: tokens already redeemed might pass again; when every token ever minted has expired, remove the file and run init for it", j.path, at)
		}
	}
	j.size = int64(len(data) / recordSize * recordSize)
	return nil
}

// redeem records id durably. It fails with ErrReplayed for the second caller
// with the same id, even while the first is still being written.
func (j *journal) redeem(ctx context.Context, id tokenID, expiry int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j.mu.Lock()
	_, replayed := j.spent[id]
	switch {
	case j.failure != nil:
		defer j.mu.Unlock()
		return j.failure
	case replayed:
		defer j.mu.Unlock()
		return ErrReplayed
	case expiry <= j.forgotten:
		defer j.mu.Unlock()
		return ErrExpired
	}
	j.spent[id] = expiry
	b := j.pending
	b.records = appendRecord(b.records, id, expiry)
	j.mu.Unlock()

	j.writing.Lock()
	defer j.writing.Unlock()
	if b.written {
		return b.err
	}
	j.mu.Lock()
	j.pending = &batch{}
	failed := j.failure
	j.mu.Unlock()
	b.written, b.err = true, failed
	if failed == nil {
		b.err = j.append(b.records)
	}
	return b.err
}

// append writes records and returns when they are durable. A full disk costs
// these records only, and their tokens may be tried again when there is space.
// After any other failed write nobody knows what the disk holds, so the journal
// takes no more. The caller holds writing.
func (j *journal) append(records []byte) error {
	err := j.grow(int64(len(records)))
	if err == nil {
		_, err = j.file.WriteAt(records, j.end)
	}
	if err != nil {
		err = fmt.Errorf("writing redeemed tokens: %w", err)
		if !diskFull(err) {
			return j.fail(err)
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		for ; len(records) > 0; records = records[recordSize:] {
			delete(j.spent, tokenID(records[:16]))
		}
		return err
	}
	j.end += int64(len(records))
	return nil
}

func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// fail stops the journal for good.
func (j *journal) fail(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure == nil {
		j.failure = err
		close(j.broken)
	}
	return err
}

func (j *journal) grow(n int64) error {
	for j.end+n > j.size {
		if _, err := j.file.WriteAt(make([]byte, blockSize), j.size); err != nil {
			return err
		}
		j.size += blockSize
	}
	return nil
}

// forget drops the ids whose tokens have expired, and rewrites the file once
// they are most of it.
func (j *journal) forget(now time.Time) error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	j.drop(now.Unix())
	live := int64(len(j.spent)) * recordSize
	failed := j.failure
	j.mu.Unlock()
	if failed != nil || j.end < blockSize || live*2 > j.end {
		return failed
	}
	return j.compact()
}

// drop forgets in memory. The caller holds mu, or is the only one.
func (j *journal) drop(now int64) {
	for id, expiry := range j.spent {
		if expiry <= now {
			delete(j.spent, id)
			j.forgotten = max(j.forgotten, expiry)
		}
	}
}

// compact replaces the file by one with the live ids alone. The caller holds
// writing. Ids that wait for their batch are in it already, which does no harm:
// their redeemers are not answered before the batch is written as well.
func (j *journal) compact() error {
	j.mu.Lock()
	data := header(j.forgotten)
	for id, expiry := range j.spent {
		data = appendRecord(data, id, expiry)
	}
	j.mu.Unlock()
	if err := durable.WriteFile(j.path, data, 0o600); err != nil {
		err = fmt.Errorf("compacting redeemed tokens: %w", err)
		if diskFull(err) && j.current() {
			return nil // the file as it was still serves
		}
		return j.fail(err)
	}
	file, err := os.OpenFile(j.path, os.O_RDWR|syscall.O_DSYNC, 0)
	if err != nil {
		return j.fail(fmt.Errorf("compacting redeemed tokens: %w", err))
	}
	old := j.file
	j.file, j.end, j.size = file, int64(len(data)), int64(len(data))
	return old.Close()
}

func (j *journal) failed() <-chan struct{} { return j.broken }

// current tells whether the path still names the open file.
func (j *journal) current() bool {
	named, err := os.Stat(j.path)
	if err != nil {
		return false
	}
	open, err := j.file.Stat()
	return err == nil && os.SameFile(named, open)
}

// close waits for the batch being written; later redemptions fail.
func (j *journal) close() error {
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	if j.failure == nil {
		j.failure = fs.ErrClosed
	}
	j.mu.Unlock()
	var err error
	if j.file != nil {
		err = j.file.Close()
		j.file = nil
	}
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
		j.lock = nil
	}
	return err
}

func header(forgotten int64) []byte {
	var tag tokenID
	copy(tag[:], journalTag)
	return appendRecord(nil, tag, forgotten)
}

// appendRecord never appends 32 zeros: the checksum of zeros is not zero.
func appendRecord(b []byte, id tokenID, expiry int64) []byte {
	start := len(b)
	b = append(b, id[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(expiry))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
	return append(b, 0, 0, 0, 0)
}

func intact(record []byte) bool {
	return binary.BigEndian.Uint32(record[24:]) == crc32.Checksum(record[:24], castagnoli) &&
		binary.BigEndian.Uint32(record[28:]) == 0
}

func journalPath(dir string) string { return filepath.Join(dir, "ci.journal") }
