package sqlite

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	engine "modernc.org/sqlite/lib"
)

// The write-ahead log is moved into the database in the background when it has grown to softWAL. A writer that finds it at
// hardWAL moves it before anybody writes again: so it never grows beyond that and one commit.
const (
	softWAL = 4 << 20
	hardWAL = 16 << 20
)

// retryCheckpoint is how long to leave a checkpoint alone that somebody outside of this process stood in the way of.
const retryCheckpoint = time.Second

// checkpointer moves the write-ahead log into the database.
type checkpointer struct {
	bulk    sync.Mutex // guards c
	c       *conn
	due     chan struct{}
	stopped chan struct{}

	walPages int          // pages written since the log was last known to be empty: no fewer than it has; guarded by the writer's token
	blocked  atomic.Int64 // when a checkpoint last failed to empty the log, in nanoseconds since 1970
}

func (k *checkpointer) start(t *tree) error {
	c, err := openConn(t.path, false)
	if err != nil {
		return err
	}
	// PRAGMA cache_size: a checkpoint copies pages and needs no cache of them.
	if err := c.exec("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; PRAGMA cache_size = -64; PRAGMA mmap_size = 0"); err != nil {
		return errors.Join(err, c.close())
	}
	// Only somebody outside of this process can be in the way, and the writer is not to wait for them.
	engine.Xsqlite3_busy_timeout(c.tls, c.db, 20)
	k.c = c
	k.due = make(chan struct{}, 1)
	k.stopped = make(chan struct{})
	// A log left by a crash is moved at once, so that its size is known. On a full disk it stays, and the tree can be read.
	if err := t.emptyWAL(); err != nil {
		if !recoverable(err) {
			return errors.Join(err, c.close())
		}
		t.checkpointed(err)
		st, err := os.Stat(t.path + "-wal")
		if err != nil {
			return errors.Join(err, c.close())
		}
		t.walPages = int(st.Size() / pageSize)
	}
	go func() {
		defer close(k.stopped)
		for range k.due {
			t.checkpoint()
		}
	}()
	return nil
}

// halt ends the background work. The caller has the writer's token, so nothing becomes due any more.
func (k *checkpointer) halt() {
	close(k.due)
	<-k.stopped
}

// limitWAL counts what was written, and sees to it that it is moved in time. The caller has the writer's token.
func (t *tree) limitWAL() {
	t.walPages += t.writer.c.pagesWritten()
	size := t.walPages * pageSize
	switch {
	case size < softWAL || t.stop.reason() != nil || time.Since(time.Unix(0, t.blocked.Load())) < retryCheckpoint:
	case size >= hardWAL:
		t.checkpointed(t.emptyWAL())
	default:
		select {
		case t.due <- struct{}{}:
		default:
		}
	}
}

// checkpoint does the long part beside writers and readers. What they add in the meantime is little, and moved while they wait.
func (t *tree) checkpoint() {
	if t.stop.reason() != nil {
		return
	}
	if _, _, err := t.moveWAL(passive); err != nil {
		t.checkpointed(err)
		return
	}
	select {
	case t.token <- struct{}{}:
	case <-t.ended:
		return
	}
	defer func() { <-t.token }()
	t.checkpointed(t.emptyWAL())
}

func (t *tree) moveWAL(mode checkpointMode) (frames, moved int, err error) {
	t.bulk.Lock()
	defer t.bulk.Unlock()
	return t.checkpointer.c.checkpoint(mode)
}

// emptyWAL moves all of the log, with nobody writing, as the caller has the token, and nobody reading, as it takes the gate.
// Readers are gone within a statement's time, so nothing can keep the log from being emptied.
func (t *tree) emptyWAL() error {
	t.gate.Lock()
	defer t.gate.Unlock()
	frames, moved, err := t.moveWAL(restart)
	if err != nil {
		return err
	}
	if frames != moved {
		return fmt.Errorf("%d of %d pages are moved", moved, frames)
	}
	t.walPages = 0
	t.writer.c.pagesWritten()
	return nil
}

// checkpointed deals with a checkpoint's outcome. Failing to write or sync the database is as fatal as failing to commit.
// A full disk is not: the log still has everything, and the next commit is refused if there is no room.
func (t *tree) checkpointed(err error) {
	if err == nil {
		return
	}
	if !recoverable(err) {
		t.stop.fatal(fmt.Errorf("moving the write-ahead log into the database: %w", err))
		return
	}
	t.blocked.Store(time.Now().UnixNano())
	t.opts.Logger.Warn("the write-ahead log could not be moved into the database",
		slog.Int64("tree", t.id), slog.Any("error", err))
}
