package appliance

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"time"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/ctlog"
	"github.com/sigbox/sigbox/services/trillian"
)

// AuditReport says whether the audit record is whole, and whether the
// certificates in it are those in the certificate transparency log.
type AuditReport struct {
	Same  bool          `json:"same"` // the record is whole, and there is no difference
	Trail audit.Summary `json:"trail"`
	// Damage is what breaks the chain.
	Damage []string `json:"damage,omitempty"`
	Issued uint64   `json:"issued"` // certificates on record
	// Refused are requests refused, those that were only counted included.
	Refused uint64 `json:"refused"`
	// Logged are the precertificates in the log.
	Logged uint64 `json:"logged"`
	// Submitted are certificates in the log that somebody sent there after they
	// were issued.
	Submitted uint64 `json:"submitted"`
	// NeverIssued are precertificates in the log that were announced in the
	// record, and whose certificate did not leave: the process died in between, or
	// the client had gone, or it is being issued right now. They are no difference.
	NeverIssued AuditFindings `json:"never_issued"`
	// Pending are certificates on record which the log has promised to take and
	// has not taken yet. It happens only without sequencing on write.
	Pending AuditFindings `json:"pending"`
	// Differences are what should not be.
	Differences AuditFindings `json:"differences"`
	// Entries is what the record says of the signature log.
	Entries EntriesReport `json:"entries"`
}

// EntriesReport compares the record of entries with the signature log's size.
type EntriesReport struct {
	Size     uint64 `json:"size"`     // of the log
	Recorded uint64 `json:"recorded"` // entries that have a record
	// Unrecorded are entries that nobody was promised: what was to go with them
	// was cut short. They are no difference.
	Unrecorded uint64 `json:"unrecorded"`
}

// AuditFindings are a number of things of which the first are listed.
type AuditFindings struct {
	Count uint64         `json:"count"`
	List  []AuditFinding `json:"list,omitempty"`
}

// maxFindings bounds each list of a report.
const maxFindings = 100

func (f *AuditFindings) add(serial string, seq uint64, entry int64, format string, args ...any) {
	f.Count++
	if len(f.List) < maxFindings {
		f.List = append(f.List, AuditFinding{Serial: serial, Seq: seq, Entry: entry, What: fmt.Sprintf(format, args...)})
	}
}

// AuditFinding is one certificate, or one entry of the signature log.
type AuditFinding struct {
	Serial string `json:"serial,omitempty"` // hexadecimal
	Seq    uint64 `json:"seq,omitempty"`    // in the record; 0: none
	Entry  int64  `json:"entry"`            // index in the log; -1: none
	What   string `json:"what"`
}

// noEntry stands for no entry of a log.
const noEntry = -1

// VerifyAudit verifies the whole audit record of the instance in dir, and
// compares it with the logs: those of the running process, or in storage where
// none runs. An error means that it cannot tell.
func VerifyAudit(ctx context.Context, dir string) (report AuditReport, err error) {
	l, _, err := locate(dir)
	if err != nil {
		return report, err
	}
	db, instance, err := l.openInstance(ctx)
	if err != nil {
		return report, err
	}
	if db != nil {
		defer db.Close()
	}
	trail := l.auditTrail(db, instance.ID)
	source, size, done, err := l.openLogs(ctx, db, instance)
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, done()) }()

	// What is on record now is in the logs, for it went there first. What comes
	// later may not be in what is read of them.
	c := comparison{report: &report, settled: math.MaxUint64, logged: map[string]*logged{}, submitted: map[string][]ctlog.Entry{}}
	if !*l.cfg.Log.SequenceOnWrite {
		c.mergeDelay = ctlog.MergeDelay
	}
	head, err := trail.end(ctx)
	if err == nil {
		c.settled = head.Seq
	} else if !errors.Is(err, audit.ErrDamaged) { // damaged, it does not grow
		return report, err
	}
	if report.Entries.Size, err = size(ctx); err != nil {
		return report, err
	}
	if _, err := ctlog.Read(ctx, source, c.entry); errors.Is(err, ctlog.ErrContent) {
		report.Differences.add("", 0, noEntry, "%v", err)
	} else if err != nil {
		return report, err
	}
	report.Trail, err = trail.read(ctx, c.record, func(b *audit.ChainError) error {
		report.damage(b)
		return nil
	})
	if errors.Is(err, audit.ErrDamaged) {
		report.damage(err)
	} else if err != nil {
		return report, err
	}
	c.finish()
	report.Same = len(report.Damage) == 0 && report.Differences.Count == 0
	return report, nil
}

func (r *AuditReport) damage(err error) {
	if len(r.Damage) < maxFindings {
		r.Damage = append(r.Damage, err.Error())
	}
}

// openLogs is the way to the ct log's entries and to the signature log's size.
func (l layout) openLogs(ctx context.Context, db *database, instance state.Instance) (_ ctlog.Source, size func(context.Context) (uint64, error), done func() error, err error) {
	var st Status
	err = askAdmin(ctx, l.socket(), http.MethodGet, "/status", nil, &st)
	if err == nil {
		repo, err := l.repositories(db).load(ctx)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("loading the tuf repository: %w", err)
		}
		target, _ := repo.Target("ctfe.pub")
		block, _ := pem.Decode(target)
		if block == nil {
			return nil, nil, nil, errors.New("the tuf repository has no ct log key")
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("reading the ct log's key: %w", err)
		}
		source, err := ctlog.Served("http://sigboxd"+ctPath, adminClient(l.socket()), key)
		size := func(ctx context.Context) (uint64, error) {
			var st Status
			if err := askAdmin(ctx, l.socket(), http.MethodGet, "/status", nil, &st); err != nil {
				return 0, err
			}
			for _, log := range st.Logs {
				if log.TreeID == instance.RekorTree {
					return log.Size, nil
				}
			}
			return 0, errors.New("the signature log's size cannot be read")
		}
		return source, size, func() error { return nil }, err
	}
	if !errors.Is(err, ErrNotRunning) {
		return nil, nil, nil, err
	}
	lock, err := state.Acquire(l.dir)
	if err != nil {
		return nil, nil, nil, err
	}
	cfg, err := l.logsConfig(instance, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, nil, errors.Join(err, lock.Release())
	}
	logs, err := trillian.New(ctx, cfg)
	if err != nil {
		return nil, nil, nil, errors.Join(fmt.Errorf("opening log storage: %w", err), lock.Release())
	}
	size = func(ctx context.Context) (uint64, error) {
		size, _, err := logs.Size(ctx, instance.RekorTree)
		return size, err
	}
	return ctlog.Stored(logs.Client(), instance.CTTree), size, func() error { return errors.Join(logs.Close(), lock.Release()) }, nil
}

// comparison goes through the log, and then through the record.
type comparison struct {
	report     *AuditReport
	settled    uint64        // records up to here are in what was read of the logs
	mergeDelay time.Duration // within which the log may take what it promised
	logged     map[string]*logged
	submitted  map[string][]ctlog.Entry // by serial
	entries    bits
}

// logged is a precertificate in the log.
type logged struct {
	ctlog.Entry
	intended, issued bool
}

// entry takes one entry of the log.
func (c *comparison) entry(e ctlog.Entry) error {
	if !e.Precertificate {
		c.report.Submitted++
		c.submitted[e.Serial] = append(c.submitted[e.Serial], e)
		return nil
	}
	c.report.Logged++
	if first := c.logged[e.Serial]; first != nil {
		c.report.Differences.add(e.Serial, 0, int64(e.Index), "the log has this serial number in entry %d too", first.Index)
		return nil
	}
	c.logged[e.Serial] = &logged{Entry: e}
	return nil
}

// record takes one record.
func (c *comparison) record(r *audit.Record) error {
	var f struct {
		Serial       string    `json:"serial"`
		TBS          audit.Sum `json:"tbs_sha256"`
		SHA256       audit.Sum `json:"sha256"`
		Leaf         audit.Sum `json:"ct_leaf_hash"`
		SCTTimestamp int64     `json:"sct_timestamp"`
		Count        *uint64   `json:"count"`
		LogIndex     int64     `json:"log_index"`
	}
	switch r.Type {
	case audit.Intended, audit.Issued, audit.Refused, audit.Appended:
	default:
		return nil
	}
	differ := func(entry int64, format string, args ...any) error {
		c.report.Differences.add(f.Serial, r.Seq, entry, format, args...)
		return nil
	}
	if err := json.Unmarshal(r.Fields, &f); err != nil {
		return differ(noEntry, "the record of type %s cannot be read", r.Type)
	}
	l := c.logged[f.Serial]
	switch r.Type {
	case audit.Intended:
		switch {
		case l == nil: // never logged, or since
		case audit.Sum(l.TBS) != f.TBS:
			return differ(int64(l.Index), "the log has another certificate under this serial number than the one announced")
		default:
			l.intended = true
		}
	case audit.Issued:
		c.report.Issued++
		for i, e := range c.submitted[f.Serial] {
			if audit.Sum(e.Certificate) == f.SHA256 {
				c.submitted[f.Serial] = append(c.submitted[f.Serial][:i:i], c.submitted[f.Serial][i+1:]...)
				break
			}
		}
		switch {
		case l == nil && r.Seq > c.settled:
		case l == nil && c.mergeDelay > 0 && time.Since(time.UnixMilli(f.SCTTimestamp)) < c.mergeDelay:
			c.report.Pending.add(f.Serial, r.Seq, noEntry, "the log has yet to take it")
		case l == nil:
			return differ(noEntry, "issued, and not in the log")
		case l.issued:
			return differ(int64(l.Index), "issued twice")
		case audit.Sum(l.Hash) != f.Leaf:
			return differ(int64(l.Index), "the log has another certificate under this serial number than the one issued")
		default:
			if l.issued = true; !l.intended {
				return differ(int64(l.Index), "issued, and not announced before")
			}
		}
	case audit.Refused:
		if f.Count == nil {
			c.report.Refused++
		} else {
			c.report.Refused += *f.Count
		}
	case audit.Appended:
		switch size := c.report.Entries.Size; {
		case f.LogIndex >= 0 && uint64(f.LogIndex) < size:
			if c.entries.set(uint64(f.LogIndex)) {
				c.report.Entries.Recorded++
			}
		case r.Seq <= c.settled:
			return differ(f.LogIndex, "acknowledged entry %d is beyond the signature log's size, %d", f.LogIndex, size)
		}
	}
	return nil
}

// finish says what of the log was not met in the record.
func (c *comparison) finish() {
	for serial, l := range c.logged {
		switch {
		case !l.intended && !l.issued:
			c.report.Differences.add(serial, 0, int64(l.Index), "in the log, and not on record: not made by this instance, or its record is missing")
		case !l.issued:
			c.report.NeverIssued.add(serial, 0, int64(l.Index), "announced and logged, never issued")
		}
	}
	for serial, entries := range c.submitted {
		for _, e := range entries {
			c.report.Differences.add(serial, 0, int64(e.Index), "a certificate in the log that is not on record")
		}
	}
	c.report.Entries.Unrecorded = c.report.Entries.Size - c.report.Entries.Recorded
}

// bits is a set of small numbers.
type bits []uint64

// set adds n, and says whether it is new.
func (b *bits) set(n uint64) bool {
	for uint64(len(*b)) <= n/64 {
		*b = append(*b, 0)
	}
	was := (*b)[n/64]
	(*b)[n/64] |= 1 << (n % 64)
	return (*b)[n/64] != was
}

// AuditFilter chooses records.
type AuditFilter struct {
	Since time.Time // zero: from the beginning
	Types []string  // empty: all
}

// ExportAudit writes the audit record of the instance in dir, running or not,
// as lines of JSON or as CSV. The chain is verified on the way; what is written
// before an error was intact.
func ExportAudit(ctx context.Context, dir string, filter AuditFilter, csv bool, w io.Writer) error {
	l, _, err := locate(dir)
	if err != nil {
		return err
	}
	db, instance, err := l.openInstance(ctx)
	if err != nil {
		return err
	}
	if db != nil {
		defer db.Close()
	}
	export := audit.ExportLines
	if csv {
		export = audit.ExportCSV
	}
	write, flush := export(w)
	_, err = l.auditTrail(db, instance.ID).read(ctx, func(r *audit.Record) error {
		if r.Time.Before(filter.Since) || !filter.has(r.Type) {
			return nil
		}
		return write(r)
	}, nil)
	return errors.Join(err, flush())
}

func (f AuditFilter) has(typ string) bool {
	for _, t := range f.Types {
		if t == typ {
			return true
		}
	}
	return len(f.Types) == 0
}

// AdoptAudit has the instance in dir, which must not run, go on with a damaged
// audit record. It returns the damage; nil means that there was none to go on
// from.
func AdoptAudit(dir string) (damage, err error) {
	l, instance, err := locate(dir)
	if err == nil {
		err = l.onFiles()
	}
	if err != nil {
		return nil, err
	}
	lock, err := state.Acquire(l.dir)
	if err != nil {
		return nil, err
	}
	damage, err = audit.Adopt(l.auditOptions(instance.ID))
	return damage, errors.Join(err, lock.Release())
}
