package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/internal/durable"
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
	archiveAudit    = "audit"
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
	audit    string // where the record is
	logger   *slog.Logger
	ready    chan struct{}

	archive *backup.Archive // nil after an error
	saved   *tuf.Repository
	trail   map[string]int64 // bytes of the audit record's files that are in the archive
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
		dir: a.archive(), instance: a.instance, logs: a.logs, index: a.rekorLog, tuf: a.trust.Repository, audit: a.layout.audit(), logger: a.named("archive"),
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
	a.archive, a.trail = archive, nil
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
	if err := a.followTrail(); err != nil {
		return err
	}
	if repo := a.tuf(); repo != a.saved {
		if err := tuf.Save(filepath.Join(a.dir, archiveTUF), repo); err != nil {
			return err
		}
		a.saved = repo
	}
	return nil
}

// followTrail appends the whole lines that the audit record has gained. Its head, read before them, follows last, so that what it says is there.
func (a *archiver) followTrail() error {
	to := filepath.Join(a.dir, archiveAudit)
	if a.trail == nil {
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		if err := durable.SyncDir(a.dir); err != nil {
			return err
		}
		a.trail = map[string]int64{}
	}
	paths, err := trailFiles(a.audit, ".json")
	if err != nil {
		return err
	}
	heads := map[string][]byte{}
	for _, p := range paths {
		if heads[filepath.Base(p)], err = os.ReadFile(p); err != nil {
			return err
		}
	}
	if paths, err = trailFiles(a.audit, ".jsonl"); err != nil {
		return err
	}
	gained := false
	for _, p := range paths {
		name := filepath.Base(p)
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		done, known := a.trail[name]
		if known && st.Size() == done {
			continue
		}
		if !known {
			if done, err = commonLines(p, filepath.Join(to, name)); err != nil {
				return err
			}
		}
		upto, err := copyLines(p, filepath.Join(to, name), done)
		if err != nil {
			return err
		}
		gained = gained || upto > done
		a.trail[name] = upto
	}
	if !gained {
		return nil
	}
	if err := durable.SyncDir(to); err != nil {
		return err
	}
	for name, data := range heads {
		if err := durable.WriteFile(filepath.Join(to, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// commonLines is how many bytes of a file its copy has, in whole lines.
func commonLines(of, in string) (int64, error) {
	have, err := os.ReadFile(in)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	want, err := os.ReadFile(of)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < min(len(have), len(want)) && have[n] == want[n] {
		n++
	}
	return int64(bytes.LastIndexByte(have[:n], '\n') + 1), nil
}

// copyLines makes a copy go on from an offset with the whole lines that are there, durably, and returns where it ends.
func copyLines(from, to string, offset int64) (end int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return offset, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return offset, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	data, err := io.ReadAll(io.NewSectionReader(in, offset, 1<<30))
	if err != nil {
		return offset, err
	}
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	end = offset + int64(len(data))
	if err := out.Truncate(offset); err != nil {
		return offset, err
	}
	if _, err := out.WriteAt(data, offset); err != nil {
		return offset, err
	}
	return end, out.Sync()
}

// restoreTrail replaces a restored audit record by the archived one, if that goes on where the other ends.
func restoreTrail(archived, restored string) error {
	entries, err := os.ReadDir(archived)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if files[e.Name()], err = os.ReadFile(filepath.Join(archived, e.Name())); err != nil {
			return err
		}
	}
	have, err := trailFiles(restored, ".jsonl")
	if err != nil {
		return err
	}
	for _, p := range have {
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if !bytes.HasPrefix(files[filepath.Base(p)], data) {
			return nil // the archive stopped before the backup was made
		}
	}
	for name, data := range files {
		if end := bytes.LastIndexByte(data, '\n') + 1; filepath.Ext(name) == ".jsonl" {
			data = data[:end]
		}
		if err := durable.WriteFile(filepath.Join(restored, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}
