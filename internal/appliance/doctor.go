package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/internal/folder"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/trillian"
)

// Verdict is what a check came to.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Warn    Verdict = "warn"    // works, and should be seen to
	Fail    Verdict = "fail"    // something is wrong
	Unknown Verdict = "unknown" // it could not be told
)

// Check is one thing that Doctor looked at.
type Check struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Found   string  `json:"found"`
	// Do is what helps, where something does.
	Do string `json:"do,omitempty"`
}

// Dates nearer than this are worth a warning.
const (
	certificateNotice = 90 * 24 * time.Hour
	rootNotice        = 30 * 24 * time.Hour
	onlineNotice      = 24 * time.Hour
)

// doctor gathers checks of one instance.
type doctor struct {
	layout
	instance state.Instance
	db       *database // nil with SQLite
	checks   []Check
}

func (d *doctor) say(name string, v Verdict, do, format string, args ...any) {
	d.checks = append(d.checks, Check{name, v, fmt.Sprintf(format, args...), do})
}

// Diagnose looks at everything that can be looked at from outside of the
// process, whether the instance in dir runs or not, and changes nothing.
func Diagnose(ctx context.Context, dir string) ([]Check, error) {
	l, _, err := locate(dir)
	if err != nil {
		return nil, err
	}
	db, instance, err := l.openInstance(ctx)
	if err != nil {
		return nil, err
	}
	if db != nil {
		defer db.Close()
	}
	d := &doctor{layout: l, instance: instance, db: db}
	d.checkConfiguration()
	st, err := AskStatus(ctx, dir)
	if err != nil {
		d.say("process", Unknown, "", "%v", err)
	} else {
		d.checkProcess(st)
	}
	d.checkFolders()
	d.checkLogs(st.Logs)
	d.checkKeys()
	d.checkTrust(ctx)
	d.checkClock()
	return d.checks, nil
}

func (d *doctor) checkConfiguration() {
	if d.cfg.URL != d.instance.URL {
		d.say("configuration", Fail, "change it back: issuers and trust material name it", "url is %s, but the instance was made for %s", d.cfg.URL, d.instance.URL)
		return
	}
	d.say("configuration", OK, "", "instance %s for %s", d.instance.ID, d.instance.URL)
	if d.cfg.Quickstart {
		d.say("quickstart", Warn, "make one with sigboxd init for production", "this instance is for trying out: every key is on this machine")
	}
}

func (d *doctor) checkProcess(st Status) {
	if !st.Running {
		d.say("process", Warn, "sigboxd serve --dir "+d.dir, "%v", ErrNotRunning)
		return
	}
	d.say("process", OK, "", "runs as process %d since %s", st.PID, st.Started.Format(time.RFC3339))
	for _, p := range st.Problems {
		// The rest of these is looked at below, and closer.
		if p.Part != "ctlog" && p.Part != "rekor" && p.Part != "disk" {
			d.say(p.Part, Fail, "see \"When something is refused\" in docs/operations.md", "%s", p.Reason)
		}
	}
}

func (d *doctor) checkFolders() {
	type named struct{ name, path string }
	folders := []named{{"anchor folder", d.anchors()}}
	if d.db == nil {
		folders = append(folders, named{"data folder", d.data("")}, named{"audit folder", d.audit()})
	}
	for _, f := range folders {
		if err := folder.Check(f.path); err != nil {
			d.say(f.name, Fail, "is its volume mounted, local, and writable for this user?", "%v", err)
			continue
		}
		s := &space{dirs: []string{f.path}, min: d.cfg.Limits.MinFreeBytes}
		if err := s.look(); err != nil {
			d.say(f.name, Fail, "make room: below limits.min_free_bytes nothing is signed", "%v", err)
			continue
		}
		d.say(f.name, OK, "", "%s", f.path)
	}
	if d.db != nil {
		return
	}
	switch same, err := sameDevice(d.data(""), d.anchors()); {
	case err != nil: // said above
	case same:
		d.say("anchor volume", Warn, "set storage.anchor_dir to a folder on another volume and move the anchors there while sigboxd is stopped",
			"the anchors share a volume with the databases: what puts one back puts the other back too, and then nothing tells")
	default:
		d.say("anchor volume", OK, "", "the anchors are on a volume of their own")
	}
}

func sameDevice(a, b string) (bool, error) {
	var x, y syscall.Stat_t
	if err := errors.Join(syscall.Stat(a, &x), syscall.Stat(b, &y)); err != nil {
		return false, err
	}
	return x.Dev == y.Dev, nil
}

func (d *doctor) checkLogs(logs []LogStatus) {
	if len(logs) == 0 {
		d.say("logs", Unknown, "", "the logs could not be read: the process, or the user who asks, may not be able to")
	}
	for _, log := range logs {
		name := "log " + log.Name
		if log.Frozen != nil {
			d.say(name, Fail, remedy(d.dir, log), "%s", log.Frozen.Reason)
			for _, f := range log.Frozen.Findings {
				d.say(name, Fail, "", "%v", f)
			}
			continue
		}
		d.say(name, OK, "", "%d entries; the anchor has %d", log.Size, log.Anchor.Size)
		switch s := log.Scrub; {
		case s == nil:
			d.say("scrub of "+log.Name, Warn, "sigboxd verify-logs --dir "+d.dir+" --log "+log.Name, "only the newest entries were computed anew just now; all are while the instance runs")
		case s.Error != "":
			d.say("scrub of "+log.Name, Fail, "look at the disk: a read failed", "%s", s.Error)
		case s.Passes == 0:
			d.say("scrub of "+log.Name, OK, "", "%d of %d entries were computed anew since the start; the first pass is under way", s.Leaves, s.Size)
		default:
			d.say("scrub of "+log.Name, OK, "", "all of %d entries were computed anew, last at %s", s.CompletedSize, s.Completed.Format(time.RFC3339))
		}
	}
}

// remedy is the way out for a frozen log.
func remedy(dir string, log LogStatus) string {
	verify := "sigboxd verify-logs --dir " + dir + " --log " + log.Name
	switch trillian.Cause(log.Frozen.Cause) {
	case trillian.CauseBehind, trillian.CauseDifferent:
		return "stop sigboxd, put the newest files of the log back, or sigboxd restore from a backup and the archive; never make an anchor to fit an old copy: see \"A log is frozen\" in docs/operations.md"
	case trillian.CauseNoAnchor:
		return "is the volume of " + filepath.Dir(log.Anchor.File) + " mounted? If the anchor is lost for good: sigboxd anchor adopt --dir " + dir + " --log " + log.Name +
			" --size N --root HEX, with the newest root that anybody was shown"
	case trillian.CauseAnchor:
		return "check the volume of " + filepath.Dir(log.Anchor.File) + ", then restart; if the anchor is lost for good: sigboxd anchor adopt --dir " + dir + " --log " + log.Name + " --size N --root HEX"
	case trillian.CauseDamaged:
		return "check disk and memory, then " + verify + " names all that is damaged; see \"A log is frozen\" in docs/operations.md"
	}
	return verify
}

func (d *doctor) checkKeys() {
	a := &Appliance{layout: d.layout}
	signers, err := a.loadKeys()
	if err != nil {
		d.say("keys", Fail, "see \"When something is refused\" in docs/operations.md", "%v", err)
		return
	}
	d.say("keys", OK, "", "all %d online keys can be opened", len(signers))
	if left, err := filepath.Glob(d.offline("*.pem")); err == nil && len(left) > 0 && !d.cfg.Quickstart {
		d.say("offline keys", Warn, "move "+d.offline("")+" off the machine, with the passphrase", "%d keys that serving does not need are on this machine", len(left))
	}
	if err := a.loadChains(signers); err != nil {
		d.say("certificates", Fail, "put the instance's own back", "%v", err)
		return
	}
	now := time.Now()
	for _, c := range append(a.chains.fulcio[:len(a.chains.fulcio):len(a.chains.fulcio)], a.chains.tsa...) {
		name := "certificate " + c.Subject.CommonName
		switch left := c.NotAfter.Sub(now); {
		case now.Before(c.NotBefore):
			d.say(name, Fail, "set the clock", "it is not valid before %s", c.NotBefore.Format(time.RFC3339))
		case left < certificateLifetime:
			d.say(name, Fail, "it can not be renewed online; what was signed stays verifiable", "it expires at %s", c.NotAfter.Format(time.RFC3339))
		case left < certificateNotice:
			d.say(name, Warn, "plan a rotation", "it expires at %s", c.NotAfter.Format(time.RFC3339))
		default:
			d.say(name, OK, "", "valid until %s", c.NotAfter.Format(time.RFC3339))
		}
	}
}

func (d *doctor) checkTrust(ctx context.Context) {
	repo, err := d.repositories(d.db).load(ctx)
	if err != nil {
		d.say("tuf", Fail, "put the instance's own tuf folder back", "%v", err)
		return
	}
	if sum := repo.RootChecksum(); sum != d.instance.RootSHA256 {
		d.say("tuf", Fail, "put the instance's own tuf folder back", "the first root has SHA-256 %s, but the instance was made with %s", sum, d.instance.RootSHA256)
		return
	}
	now := time.Now()
	for _, e := range repo.Expiries() {
		notice, do := rootNotice, "it needs its offline keys"
		if e.Role == "snapshot" || e.Role == "timestamp" {
			notice, do = onlineNotice, "it is renewed while sigboxd runs and the clock is right"
		}
		switch left := e.Expires.Sub(now); {
		case left <= 0:
			d.say("tuf "+e.Role, Fail, do, "it expired at %s", e.Expires.Format(time.RFC3339))
		case left < notice:
			d.say("tuf "+e.Role, Warn, do, "it expires at %s", e.Expires.Format(time.RFC3339))
		default:
			d.say("tuf "+e.Role, OK, "", "valid until %s", e.Expires.Format(time.RFC3339))
		}
	}
}

// clock looks for files from the future: a clock that was set back stops
// nothing here, but what is stamped now will be believed to be older.
func (d *doctor) checkClock() {
	newest, name := time.Time{}, ""
	folders := []string{d.anchors()}
	if d.db == nil {
		folders = append(folders, d.layout.logs(), d.audit())
	}
	for _, dir := range folders {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // said above
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.ModTime().After(newest) {
				newest, name = info.ModTime(), filepath.Join(dir, e.Name())
			}
		}
	}
	if ahead := time.Until(newest); ahead > time.Minute {
		d.say("clock", Warn, "check the clock", "%s was written %s from now: the clock has been set back", name, ahead.Round(time.Second))
		return
	}
	d.say("clock", OK, "", "it is %s, and nothing was written later", time.Now().UTC().Format(time.RFC3339))
}
