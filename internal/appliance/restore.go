package appliance

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/tuf"
)

// RestoreOptions say what there is to restore from.
type RestoreOptions struct {
	// From is a file that Backup made.
	From string
	// Archive is the archive of the same instance, if it has survived.
	Archive string
	// Anchor is the folder of the instance's anchors, if it has survived. Without it the one that the configuration names is looked for.
	Anchor string
	// Adopt gives roots, by the log's name, that the operator knows to be the last that were published, for logs without an anchor.
	Adopt map[string]AdoptedRoot
	// PassphraseFile opens the keys in the backup. Without it they stay there.
	PassphraseFile string
}

// AdoptedRoot is a root that an operator vouches for.
type AdoptedRoot struct {
	Size uint64
	Root []byte
}

// Restored says what came of it.
type Restored struct {
	Instance string        `json:"instance"`
	URL      string        `json:"url"`
	Epoch    int           `json:"epoch"`
	Keys     bool          `json:"keys"` // were in the backup, and are restored
	Logs     []RestoredLog `json:"logs"`
	// IndexRows is how many rows the search index has, and Dropped how many more led to entries that are not there.
	IndexRows int `json:"index_rows"`
	Dropped   int `json:"index_rows_dropped"`
}

// Frozen says that a log of it is.
func (r Restored) Frozen() bool {
	for _, l := range r.Logs {
		if l.Frozen != "" {
			return true
		}
	}
	return false
}

// RestoredLog is what came of a log.
type RestoredLog struct {
	Name     string `json:"name"`
	Tree     int64  `json:"tree_id"`
	Backup   uint64 `json:"backup_size"`   // entries in the backup
	Archived uint64 `json:"archived_size"` // entries after the archive was replayed
	Size     uint64 `json:"size"`
	Root     string `json:"root"`
	// The root that was published last, as the anchor or the operator says; none if nobody does.
	PublishedSize uint64 `json:"published_size"`
	PublishedRoot string `json:"published_root,omitempty"`
	// Frozen is why nothing will be signed for the log, if so.
	Frozen string `json:"frozen,omitempty"`
	// Missing is how many entries are lost: those from Size up to PublishedSize.
	Missing uint64 `json:"missing"`
}

// ErrStillRuns means that the instance that a backup is of has its anchors open.
var ErrStillRuns = errors.New("the instance still runs, and this would be a clone of it")

// ErrWrongInstance means that what is to be restored together is not of one instance.
var ErrWrongInstance = errors.New("it is another instance's")

// plan is what is going to be done about a log.
type plan struct {
	backup.Log
	replay *backup.Replay
	// published is nil if nobody knows.
	published *anchor.Root
	// proven is the largest size at which the entries made a root that is known, and at when that root was made.
	proven uint64
	root   []byte
	at     uint64
	// differs is what shows that this is another history.
	differs error
	// broken is why the archive can not be followed any further.
	broken error
}

// meet remembers that the entries make a root that is known.
func (p *plan) meet(size uint64, root []byte, at uint64) {
	p.proven, p.root, p.at = size, bytes.Clone(root), max(p.at, at)
}

// add goes on by a leaf, and compares where the published root is reached.
func (p *plan) add(l *backup.Leaf) error {
	if _, err := p.replay.Add(l, nil); err != nil {
		return err
	}
	return p.compare()
}

func (p *plan) compare() error {
	if p.published == nil || p.replay.Size() != p.published.Size {
		return nil
	}
	root, err := p.replay.Root()
	if err != nil {
		return err
	}
	if !bytes.Equal(root, p.published.Hash) {
		p.differs = &backup.MismatchError{Size: p.replay.Size(), Published: p.published.Hash, Computed: root}
		return nil
	}
	p.meet(p.replay.Size(), root, p.published.Timestamp)
	return nil
}

// restorer restores.
type restorer struct {
	opts     RestoreOptions
	m        Manifest
	config   []byte
	instance state.Instance
	plans    map[int64]*plan
	order    []*plan
	// anchors is the folder that has survived, and epoch what it says.
	anchors string
	epoch   int
}

// Restore makes an instance in dir, which must be empty or missing, from a backup. It verifies the backup before it writes anything. A log
// goes on only if its entries, those of the backup and those of the archive after them, make the very root that was published last.
func Restore(ctx context.Context, dir string, opts RestoreOptions) (done Restored, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return done, err
	}
	if err := vacant(dir); err != nil {
		return done, err
	}
	r := &restorer{opts: opts}
	if err := r.plan(ctx, dir); err != nil {
		return done, err
	}
	if err := state.Claim(dir); err != nil {
		return done, err
	}
	lock, err := state.Acquire(dir)
	if err != nil {
		return done, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeContents(dir))
		}
		err = errors.Join(err, lock.Release())
	}()
	return r.write(ctx, dir)
}

// vacant is an error if there is something in dir. It makes nothing.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s: %w", dir, state.ErrExists)
	}
	return nil
}

// plan reads all there is, and decides, before anything is written.
func (r *restorer) plan(ctx context.Context, dir string) (err error) {
	// Once to see that it is whole, so that nothing is decided by what is not.
	if r.m, err = backup.Read(ctx, r.opts.From, new(backup.Proof)); err != nil {
		return err
	}
	if r.m.Schema > state.Schema {
		return fmt.Errorf("%s: schema %d, this one knows %d: %w", r.opts.From, r.m.Schema, state.Schema, state.ErrNewer)
	}
	r.plans = make(map[int64]*plan)
	for _, l := range r.m.Logs {
		p := &plan{Log: l, replay: backup.NewReplay(l.Tree)}
		r.plans[l.Tree], r.order = p, append(r.order, p)
	}
	if r.opts.Archive != "" {
		if err := backup.CheckArchive(r.opts.Archive, r.m.Instance); errors.Is(err, backup.ErrForeign) {
			return fmt.Errorf("%w: %w", ErrWrongInstance, err)
		} else if err != nil {
			return err
		}
	}
	_, err = backup.Read(ctx, r.opts.From, &reader{
		part: func(name string, data []byte) error {
			switch name {
			case backup.ConfigPart:
				r.config = data
			case backup.InstancePart:
				if err := json.Unmarshal(data, &r.instance); err != nil {
					return err
				}
				if r.instance.ID != r.m.Instance {
					return fmt.Errorf("%w: the manifest is of %s, instance.json of %s", ErrWrongInstance, r.m.Instance, r.instance.ID)
				}
				return r.findPublished(dir)
			}
			return nil
		},
		record: func(rec backup.Record) error {
			if l, ok := rec.(*backup.Leaf); ok && r.plans[l.Tree] != nil {
				return r.plans[l.Tree].add(l)
			}
			return nil
		},
	})
	if err != nil {
		return err
	}
	if r.instance.ID == "" || r.config == nil {
		return fmt.Errorf("%s: instance or configuration is missing: %w", r.opts.From, backup.ErrDamaged)
	}
	for _, p := range r.order {
		root, err := hex.DecodeString(p.Root)
		if err != nil {
			return err
		}
		if p.Size == 0 {
			if err := p.compare(); err != nil {
				return err
			}
		}
		if p.differs == nil {
			p.meet(p.Size, root, p.Timestamp)
		} else {
			p.proven, p.root, p.at = p.Size, root, p.Timestamp
		}
		if r.opts.Archive != "" && p.differs == nil {
			if err := r.follow(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow replays the archive after the backup.
func (r *restorer) follow(ctx context.Context, p *plan) error {
	err := backup.ReadLog(ctx, r.opts.Archive, p.Tree, func(rec backup.Record) error {
		switch rec := rec.(type) {
		case *backup.Leaf:
			switch {
			case rec.Index < p.replay.Size():
				return nil
			case rec.Index > p.replay.Size():
				return fmt.Errorf("%w: the archive has no entry %d", errGap, p.replay.Size())
			}
			if err := p.add(rec); err != nil {
				return err
			}
			if p.differs != nil {
				return p.differs
			}
		case *backup.Root:
			if rec.Size != p.replay.Size() || rec.Size < p.Size {
				return nil
			}
			root, err := p.replay.Root()
			if err != nil {
				return err
			}
			if !bytes.Equal(root, rec.Hash) {
				return &backup.MismatchError{Size: rec.Size, Published: rec.Hash, Computed: root}
			}
			p.meet(rec.Size, root, rec.Timestamp)
		}
		return nil
	})
	if mismatch := (*backup.MismatchError)(nil); errors.Is(err, errGap) || errors.Is(err, backup.ErrDamaged) || errors.As(err, &mismatch) {
		p.broken = err
		return nil
	}
	return err
}

var errGap = errors.New("the archive does not follow on the backup")

// findPublished looks for the roots that were published last.
func (r *restorer) findPublished(dir string) (err error) {
	cfg, err := config.Parse(r.config, dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	where := r.opts.Anchor
	if where == "" {
		where = layout{dir, cfg}.anchors()
	}
	// Whoever has the folder is the instance that would be cloned.
	taken, err := anchor.Open(where, r.m.Instance)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, taken.Close()) }()
		if r.epoch, err = anchor.Epoch(where); err != nil {
			return err
		}
		r.anchors = where
	case errors.Is(err, anchor.ErrMissing) && r.opts.Anchor == "":
	case errors.Is(err, ErrInUse):
		return fmt.Errorf("%w: %w", ErrStillRuns, err)
	default:
		return err
	}
	for _, p := range r.order {
		st, err := anchor.Read(where, r.m.Instance, p.Tree)
		_, vouched := r.opts.Adopt[p.Name]
		switch {
		case err == nil && st.Hash != nil:
			p.published = &st.Root
		case err == nil, errors.Is(err, anchor.ErrMissing) && (r.opts.Anchor == "" || vouched):
		case errors.Is(err, anchor.ErrForeign):
			return fmt.Errorf("%w: %w", ErrWrongInstance, err)
		default:
			return fmt.Errorf("reading the anchor of log %s: %w", p.Name, err)
		}
		adopted, ok := r.opts.Adopt[p.Name]
		if !ok {
			continue
		}
		root := anchor.Root{Size: adopted.Size, Hash: adopted.Root, Timestamp: p.Timestamp}
		if p.published != nil && !p.published.Same(root) {
			return fmt.Errorf("log %s: its anchor has %v, and %v is to be adopted: an anchor that has survived is believed", p.Name, p.published, root)
		}
		p.published = &root
	}
	for name := range r.opts.Adopt {
		known := false
		for _, p := range r.order {
			known = known || p.Name == name
		}
		if !known {
			return fmt.Errorf("%w: %q", ErrNoLog, name)
		}
	}
	return nil
}

// write makes the instance.
func (r *restorer) write(ctx context.Context, dir string) (done Restored, err error) {
	cfg, err := config.Parse(r.config, dir)
	if err != nil {
		return done, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	l := layout{dir, cfg}
	for _, d := range []string{l.data(""), l.audit()} {
		if d == dir || strings.HasPrefix(d, dir+string(filepath.Separator)) {
			continue
		}
		if err := vacant(d); err != nil {
			return done, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, removeContents(d))
			}
		}()
	}
	for _, d := range []string{l.key(""), l.cert(""), l.tuf(), l.data(""), l.rekor(), l.run(), l.audit()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return done, err
		}
	}
	done = Restored{Instance: r.m.Instance, URL: r.m.URL}
	files, err := r.writeLogs(ctx, l, &done)
	if err != nil {
		return done, err
	}
	if err := r.writeFiles(ctx, l, files, &done); err != nil {
		return done, err
	}
	if err := r.writeAnchors(l, &done); err != nil {
		return done, err
	}
	for _, d := range []string{dir, l.data(""), l.audit()} { // the latter two may be elsewhere
		if err := syncTree(d); err != nil {
			return done, err
		}
	}
	r.instance.Epoch = max(r.m.Epoch, r.epoch) + 1
	done.Epoch = r.instance.Epoch
	// From here on the instance that this was made from is refused, wherever it still has these anchors.
	for _, d := range []string{r.anchors, l.anchors()} {
		if d == "" {
			continue
		}
		if err := anchor.SetEpoch(d, r.instance.Epoch); err != nil {
			return done, err
		}
	}
	return done, r.instance.Save(dir)
}

// indexBatch is how many records of the search index make a commit.
const indexBatch = 4096

// writeLogs makes the logs, and the index that leads to their entries. It returns the other parts of the backup, the audit record apart.
func (r *restorer) writeLogs(ctx context.Context, l layout, done *Restored) (files []part, err error) {
	var descriptions [][]byte
	for _, p := range r.order {
		descriptions = append(descriptions, p.Description)
	}
	logs, err := trillian.Restore(ctx, l.logs(), descriptions)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	index, err := rekor.Restore(ctx, l.rekor())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, index.Close()) }()

	add := func(leaf *backup.Leaf) error {
		p := r.plans[leaf.Tree]
		if log := logs.Log(leaf.Tree); log != nil && leaf.Index == log.Size() && leaf.Index < p.proven {
			return log.Add(ctx, leaf)
		}
		return nil
	}
	_, err = backup.Read(ctx, r.opts.From, &reader{
		part: func(name string, data []byte) error {
			switch {
			case strings.HasPrefix(name, backup.AuditPrefix):
				return appendTo(filepath.Join(l.audit(), filepath.Base(name)), data)
			case !backup.IsRecords(name):
				files = append(files, part{name, data})
			}
			return nil
		},
		record: func(rec backup.Record) error {
			if leaf, ok := rec.(*backup.Leaf); ok {
				return add(leaf)
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	for _, p := range r.order {
		log := logs.Log(p.Tree)
		if r.opts.Archive != "" {
			// What can not be read lies beyond what was proven.
			err := backup.ReadLog(ctx, r.opts.Archive, p.Tree, func(rec backup.Record) error {
				if leaf, ok := rec.(*backup.Leaf); ok {
					return add(leaf)
				}
				return nil
			})
			if err != nil && !errors.Is(err, backup.ErrDamaged) {
				return nil, err
			}
		}
		root, err := log.Root()
		if err != nil {
			return nil, err
		}
		if log.Size() != p.proven || !bytes.Equal(root, p.root) {
			return nil, fmt.Errorf("log %s came to size %d, root %x, and not to size %d, root %x, as when it was read before", p.Name, log.Size(), root, p.proven, p.root)
		}
		if err := log.Finish(ctx, p.at); err != nil {
			return nil, err
		}
		done.Logs = append(done.Logs, p.outcome())
	}

	var batch []backup.Record
	flush := func() error {
		err := index.Load(ctx, batch)
		batch = batch[:0]
		return err
	}
	load := func(rec backup.Record) error {
		switch row := rec.(type) {
		case *backup.IndexRow:
			tree, hash, ok := rekor.LeafOf(row)
			log := logs.Log(tree)
			if !ok || log == nil {
				return fmt.Errorf("a row of the search index: %w", backup.ErrDamaged)
			}
			if has, err := log.Has(hash); err != nil {
				return err
			} else if !has {
				done.Dropped++
				return nil
			}
			done.IndexRows++
		case *backup.Attestation:
		default:
			return nil
		}
		if batch = append(batch, rec); len(batch) < indexBatch {
			return nil
		}
		return flush()
	}
	if r.opts.Archive != "" {
		if err := backup.ReadIndex(ctx, r.opts.Archive, load); err != nil {
			return nil, fmt.Errorf("the archive of the search index: %w", err)
		}
		if err := flush(); err != nil {
			return nil, err
		}
	}
	if _, err := backup.Read(ctx, r.opts.From, &reader{record: load}); err != nil {
		return nil, err
	}
	return files, flush()
}

// outcome says what becomes of a log.
func (p *plan) outcome() RestoredLog {
	out := RestoredLog{Name: p.Name, Tree: p.Tree, Backup: p.Size, Archived: p.replay.Size(), Size: p.proven, Root: hex.EncodeToString(p.root)}
	if p.published == nil {
		out.Frozen = "its anchor has not survived, so that nobody knows whether this is the last root that was published"
		return out
	}
	out.PublishedSize, out.PublishedRoot = p.published.Size, hex.EncodeToString(p.published.Hash)
	switch {
	case p.differs != nil:
		out.Frozen = p.differs.Error()
	case p.proven < p.published.Size:
		out.Missing = p.published.Size - p.proven
		out.Frozen = fmt.Sprintf("entries %d to %d were published and are neither in the backup nor in the archive", p.proven, p.published.Size-1)
		if p.broken != nil {
			out.Frozen += fmt.Sprintf(" (%v)", p.broken)
		}
	}
	return out
}

// writeFiles makes what is not in a log or in the index.
func (r *restorer) writeFiles(ctx context.Context, l layout, files []part, done *Restored) error {
	repo := map[string][]byte{}
	for _, f := range files {
		switch {
		case f.name == backup.ConfigPart:
			if err := durable.WriteNew(filepath.Join(l.dir, config.FileName), f.data, 0o600); err != nil {
				return err
			}
		case f.name == backup.JournalPart:
			if err := issuer.RestoreCI(l.issuer(), f.data); err != nil {
				return err
			}
		case f.name == backup.PeoplePart:
			if err := issuer.RestorePeople(ctx, l.issuer(), f.data); err != nil {
				return err
			}
		case strings.HasPrefix(f.name, backup.CertPrefix):
			if err := durable.WriteNew(l.cert(filepath.Base(f.name)), f.data, 0o644); err != nil {
				return err
			}
		case strings.HasPrefix(f.name, backup.TUFPrefix):
			repo[strings.TrimPrefix(f.name, backup.TUFPrefix)] = f.data
		}
	}
	if r.opts.Archive != "" {
		if err := restoreTrail(filepath.Join(r.opts.Archive, archiveAudit), l.audit()); err != nil {
			return err
		}
	}
	parsed, err := tuf.Parse(repo)
	if err != nil {
		return fmt.Errorf("restoring the tuf repository: %w", err)
	}
	if sum := parsed.RootChecksum(); sum != r.instance.RootSHA256 {
		return fmt.Errorf("restoring the tuf repository: the first root has SHA-256 %s, the instance was made with %s", sum, r.instance.RootSHA256)
	}
	if parsed, err = r.newest(parsed); err != nil {
		return fmt.Errorf("restoring the tuf repository: %w", err)
	}
	if err := tuf.Save(l.tuf(), parsed); err != nil {
		return fmt.Errorf("restoring the tuf repository: %w", err)
	}
	return r.writeKeys(l, files, done)
}

// newest is the archive's TUF repository if it is newer than the backup's.
func (r *restorer) newest(repo *tuf.Repository) (*tuf.Repository, error) {
	if r.opts.Archive == "" {
		return repo, nil
	}
	archived, err := tuf.Load(filepath.Join(r.opts.Archive, archiveTUF))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return repo, nil
	case err != nil:
		return nil, err
	case archived.RootChecksum() != repo.RootChecksum():
		return nil, fmt.Errorf("that in the archive has another first root: %w", ErrWrongInstance)
	case archived.Version() < repo.Version():
		return repo, nil
	}
	return archived, nil
}

// writeKeys encrypts the keys with the passphrase that the new instance has, or is given now.
func (r *restorer) writeKeys(l layout, files []part, done *Restored) error {
	if !r.m.WithKeys || r.opts.PassphraseFile == "" {
		return nil
	}
	pass, err := keys.ReadPassphrase(r.opts.PassphraseFile)
	if err != nil {
		return err
	}
	own, err := l.readOrMakePassphrase()
	if err != nil {
		return err
	}
	for _, f := range files {
		path := l.key
		switch {
		case strings.HasPrefix(f.name, backup.KeyPrefix):
		case strings.HasPrefix(f.name, backup.OfflineKeys):
			path = l.offline
		default:
			continue
		}
		key, err := keys.Decrypt(f.name, f.data, pass)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(path(""), 0o700); err != nil {
			return err
		}
		if err := keys.Write(path(filepath.Base(f.name)), key, own); err != nil {
			return err
		}
	}
	done.Keys = true
	return nil
}

// writeAnchors makes anchors that say what was published last: of a log that goes on, what it has now, and of a frozen one, what it lacks.
// Those that have survived where the configuration names them are kept.
func (r *restorer) writeAnchors(l layout, done *Restored) (err error) {
	folder, err := anchor.Open(l.anchors(), r.m.Instance)
	if errors.Is(err, anchor.ErrMissing) {
		if err = anchor.Create(l.anchors()); err == nil {
			folder, err = anchor.Open(l.anchors(), r.m.Instance)
		}
	}
	if err != nil {
		return fmt.Errorf("making anchors: %w", err)
	}
	defer func() { err = errors.Join(err, folder.Close(), durable.SyncDir(l.anchors())) }()
	for i, p := range r.order {
		if p.published == nil {
			continue
		}
		root := *p.published
		if done.Logs[i].Frozen == "" {
			root = anchor.Root{Size: p.proven, Hash: p.root, Timestamp: p.at}
		}
		_, err := folder.Load(p.Tree)
		if errors.Is(err, anchor.ErrMissing) {
			err = folder.Add(p.Tree)
		}
		if err == nil {
			err = folder.Record(p.Tree, root)
		}
		if err != nil {
			return fmt.Errorf("making the anchor of log %s: %w", p.Name, err)
		}
	}
	return nil
}

func appendTo(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// part is a part of a backup in memory.
type part struct {
	name string
	data []byte
}

// reader is a Check made of functions, of which any may be left out.
type reader struct {
	part   func(name string, data []byte) error
	record func(backup.Record) error
}

func (r *reader) Begin(Manifest) error { return nil }

func (r *reader) Part(name string, data []byte) error {
	if r.part != nil {
		if err := r.part(name, data); err != nil {
			return err
		}
	}
	if r.record == nil || !backup.IsRecords(name) {
		return nil
	}
	_, err := backup.Decode(data, r.record)
	return err
}

func (r *reader) End() error { return nil }
