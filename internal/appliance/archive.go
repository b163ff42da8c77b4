package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/tuf"
)

// The archive follows at a distance, and what is published in between is not in it: archiveInterval bounds that. After an error it tries again after
// archiveRetry.
const (
	archiveInterval = 200 * time.Millisecond
	archiveRetry    = 5 * time.Second
	archiveTUF      = "tuf"
)

// ErrSuperseded means that the instance was restored elsewhere, which took its place.
var ErrSuperseded = errors.New("this instance was restored elsewhere, and must not sign any more")

// checkEpoch refuses an instance that was replaced by a restored one, as far as the anchors' folder knows.
func (l layout) checkEpoch(i state.Instance) error {
	epoch, err := anchor.Epoch(l.anchors())
	if err == nil && epoch > i.Epoch {
		err = fmt.Errorf("%w: its epoch is %d, and that beside the anchors in %s is %d", ErrSuperseded, i.Epoch, l.anchors(), epoch)
	}
	return err
}

// ArchiveStatus is how the archive is.
type ArchiveStatus struct {
	Dir string `json:"dir"`
	// Sizes are how many entries of each log are in it, durably.
	Sizes map[string]uint64 `json:"sizes"`
	// Error is why it does not follow, if so. Signing goes on.
	Error string `json:"error,omitempty"`
}

// archiver appends to the archive what was sequenced, indexed and renewed since.
type archiver struct {
	dir      string
	instance state.Instance
	logs     *trillian.Service
	index    *rekor.Service
	tuf      func() *tuf.Repository
	logger   *slog.Logger
	ready    chan struct{}

	archive *backup.Archive // nil after an error
	saved   *tuf.Repository
	fresh   bool

	mu sync.Mutex
	st ArchiveStatus
}

// startArchive follows the logs into the archive, if there is to be one.
func (a *Appliance) startArchive(ctx context.Context) error {
	if a.archive() == "" {
		return nil
	}
	a.archiver = &archiver{
		dir: a.archive(), instance: a.instance, logs: a.logs, index: a.rekorLog, tuf: a.trust.Repository, logger: a.named("archive"),
		ready: make(chan struct{}), fresh: a.rekorLog.OutboxIsFresh(), st: ArchiveStatus{Dir: a.archive(), Sizes: map[string]uint64{}},
	}
	if err := a.archiver.open(ctx); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: storage.archive_dir: %w: it is not made for you, so that an archive whose volume is not mounted is noticed", ErrConfig, err)
	} else if err != nil {
		return fmt.Errorf("opening the archive: %w", err)
	}
	return a.services.start("archive", a.archiver)
}

func (a *archiver) open(ctx context.Context) (err error) {
	archive, err := backup.OpenArchive(a.dir, a.instance.ID, a.instance.CTTree, a.instance.RekorTree)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, archive.Close())
		}
	}()
	for _, log := range logsOf(a.instance) {
		last := archive.Last(log.tree)
		if last.Tree == 0 {
			continue
		}
		now, err := a.logs.Root(log.tree)
		if err != nil {
			return err
		}
		if now.Size < last.Size {
			return fmt.Errorf("it has %d entries of log %s, and the log has %d: the log is an older copy", last.Size, log.name, now.Size)
		}
		root, err := a.logs.RootAt(ctx, log.tree, last.Size)
		if err != nil {
			return err
		}
		if !bytes.Equal(root, last.Hash) {
			return fmt.Errorf("it has root %x of log %s at size %d, and the log has %x: they are of two histories", last.Hash, log.name, last.Size, root)
		}
	}
	if a.fresh {
		if err := archive.Complete(false); err != nil {
			return err
		}
		a.fresh = false
	}
	a.archive = archive
	return nil
}

// Ready implements service.
func (a *archiver) Ready() <-chan struct{} { return a.ready }

// Run implements service. An archive that can not be written does not end the process; status and the log say so.
func (a *archiver) Run(ctx context.Context) error {
	close(a.ready)
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			// Writes are over, and what they left is on its way.
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), archiveRetry)
			defer cancel()
			a.follow(last)
			if a.archive == nil {
				return nil
			}
			return a.archive.Close()
		case <-tick.C:
			tick.Reset(a.follow(ctx))
		}
	}
}

// follow catches up, and returns when to do so again.
func (a *archiver) follow(ctx context.Context) time.Duration {
	err := error(nil)
	if a.archive == nil {
		err = a.open(ctx)
	}
	if err == nil {
		err = a.catchUp(ctx)
	}
	if err == nil || ctx.Err() != nil {
		a.report("")
		return archiveInterval
	}
	a.logger.Error("the archive does not follow the logs", "error", err)
	if a.archive != nil {
		err = errors.Join(err, a.archive.Close())
		a.archive = nil
	}
	a.report(err.Error())
	return archiveRetry
}

func (a *archiver) report(reason string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.st.Error = reason
	if a.archive == nil {
		return
	}
	for _, log := range logsOf(a.instance) {
		a.st.Sizes[log.name] = a.archive.Next(log.tree)
	}
}

func (a *archiver) status() *ArchiveStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	st := ArchiveStatus{Dir: a.st.Dir, Error: a.st.Error, Sizes: map[string]uint64{}}
	for name, size := range a.st.Sizes {
		st.Sizes[name] = size
	}
	return &st
}

func (a *archiver) catchUp(ctx context.Context) error {
	pace := gently(ctx)
	if a.archive.Fresh {
		if err := errors.Join(a.index.Export(ctx, a.archive.Index, pace), a.archive.SyncIndex()); err != nil {
			return err
		}
		if err := a.archive.Complete(true); err != nil {
			return err
		}
	}
	for _, log := range logsOf(a.instance) {
		root, err := a.logs.Root(log.tree)
		if err != nil {
			return err
		}
		if root.Size == a.archive.Next(log.tree) {
			continue
		}
		if err := a.logs.Export(ctx, log.tree, a.archive.Next(log.tree), root.Size, a.archive.Leaf, func(n int) error {
			if n < 64<<10 {
				return nil
			}
			return pace(n)
		}); err != nil {
			return err
		}
		if err := a.archive.Root(root); err != nil {
			return err
		}
	}
	for {
		records, mark, err := a.index.Outbox(ctx)
		if err != nil {
			return err
		}
		if mark == 0 {
			break
		}
		for _, r := range records {
			if err := a.archive.Index(r); err != nil {
				return err
			}
		}
		if err := a.archive.SyncIndex(); err != nil {
			return err
		}
		if err := a.index.Sent(ctx, mark); err != nil {
			return err
		}
	}
	if repo := a.tuf(); repo != a.saved {
		if err := tuf.Save(filepath.Join(a.dir, archiveTUF), repo); err != nil {
			return err
		}
		a.saved = repo
	}
	return nil
}
