package appliance

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sigbox/sigbox/internal/backup"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/front"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/internal/version"
	"github.com/sigbox/sigbox/services/issuer"
	"github.com/sigbox/sigbox/services/rekor"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/tuf"
)

// Manifest says what a backup holds.
type Manifest = backup.Manifest

// BackupOptions are what a backup is asked for.
type BackupOptions struct {
	// Out is the file to make.
	Out string
	// WithKeys puts the private keys into it, encrypted with the passphrase in PassphraseFile.
	WithKeys       bool
	PassphraseFile string
}

// backupRequest asks the administration socket for a backup.
type backupRequest struct {
	// Passphrase encrypts the keys; without one they are left out.
	Passphrase []byte `json:"passphrase,omitempty"`
}

// LogValue keeps the passphrase out of logs.
func (backupRequest) LogValue() slog.Value { return slog.StringValue("[backup request]") }

// errorTrailer says, behind a backup that broke off, why it did.
const errorTrailer = "Sigbox-Error"

// maxDrain is how long a backup waits for the requests that were under way when it began.
const maxDrain = 2 * time.Minute

// Backup writes a backup of the instance in dir, running or not, and reads it again. The file appears only when it is whole, durable and
// verified. It is not overwritten: the error satisfies errors.Is(err, fs.ErrExist).
func Backup(ctx context.Context, dir string, opts BackupOptions) (Manifest, error) {
	l, instance, err := locate(dir)
	if err == nil {
		err = l.onFiles()
	}
	if err != nil {
		return Manifest{}, err
	}
	var req backupRequest
	if opts.WithKeys {
		pass, err := keys.ReadPassphrase(opts.PassphraseFile)
		if err != nil {
			return Manifest{}, err
		}
		req.Passphrase = pass.Reveal()
	}
	out, err := filepath.Abs(opts.Out)
	if err != nil {
		return Manifest{}, err
	}
	if _, err := os.Lstat(out); err == nil {
		return Manifest{}, &fs.PathError{Op: "create", Path: out, Err: fs.ErrExist}
	}
	m, err := askBackup(ctx, l.socket(), req, out)
	if !errors.Is(err, ErrNotRunning) {
		return m, err
	}
	return l.backupAtRest(ctx, instance, req, out)
}

func askBackup(ctx context.Context, socket string, body backupRequest, out string) (m Manifest, err error) {
	data, err := json.Marshal(body)
	if err != nil {
		return m, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sigboxd/backup", bytes.NewReader(data))
	if err != nil {
		return m, err
	}
	resp, err := adminClient(socket).Do(req)
	if err != nil {
		return m, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var e struct{ Message string }
		data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
		if json.Unmarshal(data, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		return m, errors.New(e.Message)
	}
	m, err = backup.Receive(ctx, out, resp.Body, &backup.Proof{Pace: gently(ctx)})
	if why := resp.Trailer.Get(errorTrailer); err != nil && why != "" {
		err = fmt.Errorf("%s: %w", why, err)
	}
	return m, err
}

// backupAtRest does it where nobody serves.
func (l layout) backupAtRest(ctx context.Context, instance state.Instance, req backupRequest, out string) (m Manifest, err error) {
	lock, err := state.Acquire(l.dir)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	cfg, err := l.logsConfig(instance, nil)
	if err != nil {
		return m, err
	}
	logs, err := trillian.New(ctx, cfg)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()
	repo, err := tuf.Load(l.tuf())
	if err != nil {
		return m, err
	}
	c := &copier{
		layout: l, instance: instance, logs: logs, tuf: repo,
		settled: func(context.Context) error { return nil }, pace: func(int) error { return ctx.Err() },
		index: func(ctx context.Context, each func(backup.Record) error, pace func(int) error) error {
			return rekor.ExportAtRest(ctx, l.rekor(), each, pace)
		},
		redeemed: func() ([]byte, error) { return issuer.ExportCI(l.issuer()) },
		people:   func(ctx context.Context) ([]byte, error) { return issuer.ExportPeople(ctx, l.issuer()) },
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.copy(ctx, w, req)) }()
	m, err = backup.Receive(ctx, out, r, &backup.Proof{})
	return m, errors.Join(err, r.Close())
}

// serveBackup streams a backup over the administration socket.
func (a *Appliance) serveBackup(w http.ResponseWriter, r *http.Request) {
	var req backupRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&req); err != nil {
		front.Error(w, http.StatusBadRequest, "reading request: "+err.Error())
		return
	}
	if err := a.onFiles(); err != nil {
		front.Error(w, http.StatusBadRequest, err.Error())
		return
	}
	if !a.copying.TryLock() {
		front.Error(w, http.StatusConflict, "a backup is being made already")
		return
	}
	defer a.copying.Unlock()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", errorTrailer)
	began := time.Now()
	c := &copier{
		layout: a.layout, instance: a.instance, logs: a.logs, tuf: a.trust.Repository(), settled: a.writes.settled, pace: gently(r.Context()),
		index: a.rekorLog.Export, redeemed: a.ci.Export,
		people: func(ctx context.Context) ([]byte, error) {
			if a.people != nil {
				return a.people.Export(ctx)
			}
			return issuer.ExportPeople(ctx, a.layout.issuer())
		},
	}
	if err := c.copy(r.Context(), w, req); err != nil {
		// Whoever reads it finds no manifest at the end, and why here.
		w.Header().Set(errorTrailer, strings.ReplaceAll(err.Error(), "\n", "; "))
		a.logger.Error("a backup was not finished", "error", err)
		return
	}
	a.logger.Info("a backup was handed out", "took", time.Since(began))
}

// gently makes whoever calls it between two pieces of work rest three times as long as it worked, so that it takes a quarter of a processor and
// of a disk at most.
func gently(ctx context.Context) func(int) error {
	last := time.Now()
	return func(int) error {
		wait := time.NewTimer(min(3*time.Since(last), time.Second))
		defer wait.Stop()
		select {
		case <-wait.C:
			last = time.Now()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copier writes a backup of an instance.
type copier struct {
	layout
	instance state.Instance
	logs     *trillian.Service
	tuf      *tuf.Repository
	index    func(ctx context.Context, each func(backup.Record) error, pace func(int) error) error
	redeemed func() ([]byte, error)
	people   func(ctx context.Context) ([]byte, error)
	// settled returns when every write that was under way when it was called has been answered.
	settled func(ctx context.Context) error
	pace    func(bytes int) error
}

// copy writes what was acknowledged before it began, and nothing that refers to what is missing. The order makes it so:
//
//   - What is queued is sequenced, and the sizes of the logs are taken. The entries below them never change.
//   - Writes under way are waited for: each of those entries now has its rows in the search index and its event in the audit record, or was
//     refused to whoever sent it.
//   - The end of the audit record is taken.
//   - The rest is copied, in any order. The index may have rows of later entries: those whose entry is not there when the backup is restored are left out
//     then. Used tokens come after the logs, so that none that bought a certificate is missing.
func (c *copier) copy(ctx context.Context, w io.Writer, req backupRequest) error {
	m := Manifest{
		Format: backup.Format, Version: version.Get().Version, Instance: c.instance.ID, Schema: c.instance.Schema, Epoch: c.instance.Epoch,
		URL: c.instance.URL, Began: time.Now().UTC(), WithKeys: len(req.Passphrase) > 0,
	}
	for _, log := range logsOf(c.instance) {
		if err := c.logs.Sequence(ctx, log.tree); err != nil {
			return err
		}
		root, err := c.logs.Root(log.tree)
		if err != nil {
			return err
		}
		described, err := c.logs.Describe(ctx, log.tree)
		if err != nil {
			return fmt.Errorf("describing log %s: %w", log.name, err)
		}
		m.Logs = append(m.Logs, backup.Log{
			Name: log.name, Tree: log.tree, Size: root.Size, Root: hex.EncodeToString(root.Hash), Timestamp: root.Timestamp, Description: described,
		})
	}
	drain, cancel := context.WithTimeout(ctx, maxDrain)
	defer cancel()
	if err := c.settled(drain); err != nil {
		return fmt.Errorf("waiting for the requests under way: %w", err)
	}
	trail, err := openTrail(c.layout.audit())
	if err != nil {
		return err
	}
	defer trail.close()

	s := backup.NewStream(w)
	if err := c.copyFiles(s); err != nil {
		return err
	}
	for _, log := range m.Logs {
		records := backup.NewRecords(s, backup.LogPrefix+log.Name)
		err := c.logs.Export(ctx, log.Tree, 0, log.Size, func(l *backup.Leaf) error { return records.Add(l) }, c.pace)
		if err := errors.Join(err, records.Flush()); err != nil {
			return err
		}
	}
	records := backup.NewRecords(s, backup.IndexPrefix+"rows")
	err = c.index(ctx, func(r backup.Record) error {
		switch r.(type) {
		case *backup.IndexRow:
			m.Index.Rows++
		case *backup.Attestation:
			m.Index.Attestations++
		}
		return records.Add(r)
	}, c.pace)
	if err := errors.Join(err, records.Flush()); err != nil {
		return err
	}
	for name, read := range map[string]func() ([]byte, error){
		backup.JournalPart: c.redeemed,
		backup.PeoplePart:  func() ([]byte, error) { return c.people(ctx) },
	} {
		data, err := read()
		if err != nil {
			return err
		}
		if err := s.Part(name, data); err != nil {
			return err
		}
	}
	if err := trail.copy(s, c.pace); err != nil {
		return err
	}
	if m.WithKeys {
		if err := c.copyKeys(s, keys.ChosenPassphrase(req.Passphrase)); err != nil {
			return err
		}
	}
	m.Finished = time.Now().UTC()
	return s.Finish(m)
}

// copyFiles writes what is small.
func (c *copier) copyFiles(s *backup.Stream) error {
	file := func(part, path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("reading %s: %w", part, err)
		}
		return s.Part(part, data)
	}
	if err := file(backup.ConfigPart, filepath.Join(c.dir, config.FileName)); err != nil {
		return err
	}
	instance, err := json.Marshal(c.instance)
	if err != nil {
		return err
	}
	if err := s.Part(backup.InstancePart, instance); err != nil {
		return err
	}
	for _, name := range []string{chainFulcio, chainTSA} {
		if err := file(backup.CertPrefix+name, c.cert(name)); err != nil {
			return err
		}
	}
	files := c.tuf.Files()
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := s.Part(backup.TUFPrefix+name, files[name]); err != nil {
			return err
		}
	}
	return nil
}

// copyKeys writes the keys that are on the machine, encrypted anew: the passphrase that the instance has them under stays where it is.
func (c *copier) copyKeys(s *backup.Stream, pass keys.Passphrase) error {
	own, err := keys.ReadPassphrase(c.passphrase())
	if err != nil {
		return err
	}
	for prefix, path := range map[string]func(string) string{backup.KeyPrefix: c.key, backup.OfflineKeys: c.offline} {
		entries, err := os.ReadDir(path(""))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".pem" {
				continue
			}
			key, err := keys.Load(path(e.Name()), own)
			if err != nil {
				return err
			}
			data, err := keys.Encrypt(key, pass)
			if err != nil {
				return err
			}
			if err := s.Part(prefix+e.Name(), data); err != nil {
				return err
			}
			if err := c.pace(len(data)); err != nil {
				return err
			}
		}
	}
	return nil
}

// trail is the audit record as of a moment: its files, and how far they are whole.
type trail struct {
	files []trailFile
}

type trailFile struct {
	name string
	f    *os.File
	size int64
}

// trailFiles are the files with an extension of the audit record in a folder.
func trailFiles(dir, ext string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") && filepath.Ext(e.Name()) == ext {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	return paths, nil
}

// openTrail takes the record in a folder.
func openTrail(dir string) (t *trail, err error) {
	t = new(trail)
	defer func() {
		if err != nil {
			t.close()
			err = fmt.Errorf("reading the audit record: %w", err)
		}
	}()
	// The head says how far the lines go that are taken after it.
	for _, ext := range []string{".json", ".jsonl"} {
		paths, err := trailFiles(dir, ext)
		if err != nil {
			return t, err
		}
		for _, p := range paths {
			f, err := os.Open(p)
			if err != nil {
				return t, err
			}
			t.files = append(t.files, trailFile{name: filepath.Base(p), f: f})
			size, err := f.Seek(0, io.SeekEnd)
			if err != nil {
				return t, err
			}
			t.files[len(t.files)-1].size = size
		}
	}
	return t, nil
}

// copy writes whole lines.
func (t *trail) copy(s backup.Sink, pace func(int) error) error {
	for _, f := range t.files {
		if _, err := f.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if f.size == 0 {
			if err := s.Part(backup.AuditPrefix+f.name, nil); err != nil { // it is there all the same
				return err
			}
		}
		rest := []byte{}
		buf := make([]byte, 1<<20)
		for left := f.size; left > 0; {
			n, err := f.f.Read(buf[:min(left, int64(len(buf)))])
			if err != nil {
				return fmt.Errorf("reading the audit record: %w", err)
			}
			left -= int64(n)
			rest = append(rest, buf[:n]...)
			end := bytes.LastIndexByte(rest, '\n') + 1
			if end == 0 {
				continue
			}
			if err := s.Part(backup.AuditPrefix+f.name, rest[:end]); err != nil {
				return err
			}
			rest = append([]byte{}, rest[end:]...)
			if err := pace(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *trail) close() {
	for _, f := range t.files {
		f.f.Close() // it was read
	}
}

// writes knows which writes are under way.
type writes struct {
	mu      sync.Mutex
	current *sync.WaitGroup
}

// track counts the writes that a handler works on.
func (w *writes) track(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			defer w.begin()()
		}
		h.ServeHTTP(rw, r)
	})
}

func (w *writes) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current == nil {
		w.current = new(sync.WaitGroup)
	}
	w.current.Add(1)
	return w.current.Done
}

// settled returns when those are over that were under way when it was called. Later ones are not waited for.
func (w *writes) settled(ctx context.Context) error {
	w.mu.Lock()
	was := w.current
	w.current = nil
	w.mu.Unlock()
	if was == nil {
		return nil
	}
	over := make(chan struct{})
	go func() { was.Wait(); close(over) }()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
