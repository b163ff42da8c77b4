package appliance

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/sigbox/sigbox/internal/anchor"
	"github.com/sigbox/sigbox/internal/folder"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/trillian"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// Errors about logs and their anchors that call for different help.
var (
	// ErrNoLog: there is no log of this name.
	ErrNoLog = errors.New("there is no such log")
	// ErrInUse: another process has the storage or the anchors.
	ErrInUse = folder.ErrLocked
	// ErrNotLocal: the storage or the anchors are where fsync and locks can not be relied on.
	ErrNotLocal = folder.ErrNetwork
	// ErrOlderRoot: an anchor would be replaced by an older root.
	ErrOlderRoot = anchor.ErrBack
	// ErrNotReproduced: the stored log does not have the root.
	ErrNotReproduced = trillian.ErrNotReproduced
)

// namedLog is one of the two transparency logs.
type namedLog struct {
	name string
	tree int64
}

func logsOf(i state.Instance) []namedLog {
	return []namedLog{{"ctlog", i.CTTree}, {"rekor", i.RekorTree}}
}

// selectLogs finds the logs of these names, or all if there are none.
func selectLogs(i state.Instance, names []string) ([]namedLog, error) {
	if len(names) == 0 {
		return logsOf(i), nil
	}
	var selected []namedLog
	for _, name := range names {
		found := false
		for _, l := range logsOf(i) {
			if l.name == name {
				selected, found = append(selected, l), true
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: %q", ErrNoLog, name)
		}
	}
	return selected, nil
}

// Finding is one thing in a log that is not as it was written.
type Finding = verify.Finding

// LogStatus is how one transparency log is.
type LogStatus struct {
	Name   string `json:"name"`
	TreeID int64  `json:"tree_id"`
	Size   uint64 `json:"size"` // entries
	Root   string `json:"root"` // hexadecimal
	// Frozen is why nothing is signed for the log, if so.
	Frozen *FrozenStatus `json:"frozen,omitempty"`
	Anchor AnchorStatus  `json:"anchor"`
	// Scrub is known while the instance runs.
	Scrub *ScrubStatus `json:"scrub,omitempty"`
}

// FrozenStatus is the reason why a log is read-only.
type FrozenStatus struct {
	// Cause is behind, different, no-anchor, anchor or damaged.
	Cause    string    `json:"cause"`
	Reason   string    `json:"reason"`
	Since    time.Time `json:"since,omitzero"`
	Findings []Finding `json:"findings,omitempty"`
}

// AnchorStatus is what is known of a log outside of its storage.
type AnchorStatus struct {
	File string `json:"file"`
	Size uint64 `json:"size"`
	Root string `json:"root,omitempty"` // hexadecimal; none if there is no anchor
}

// ScrubStatus is how much of a log was computed anew in the background.
type ScrubStatus struct {
	Leaves uint64 `json:"leaves"` // of the pass that is under way
	Size   uint64 `json:"size"`   // of the tree that it goes through
	Passes int    `json:"passes"` // completed since the start
	// Completed is when the last pass was, over a tree of CompletedSize.
	Completed     time.Time `json:"completed,omitzero"`
	CompletedSize uint64    `json:"completed_size"`
	Error         string    `json:"error,omitempty"`
}

func logStatus(log namedLog, state trillian.LogState) LogStatus {
	st := LogStatus{
		Name: log.name, TreeID: log.tree, Size: state.Size, Root: hex.EncodeToString(state.Root),
		Anchor: AnchorStatus{File: state.AnchorFile, Size: state.Anchored.Size, Root: hex.EncodeToString(state.Anchored.Hash)},
	}
	if f := state.Frozen; f != nil {
		st.Frozen = &FrozenStatus{Cause: string(f.Cause), Reason: f.Reason, Since: f.Since.UTC(), Findings: f.Findings}
	}
	if c := state.Scrub; c != (trillian.Coverage{}) {
		st.Scrub = &ScrubStatus{
			Leaves: c.Leaves, Size: c.Size, Passes: c.Passes, Completed: c.Completed.UTC(), CompletedSize: c.CompletedSize, Error: c.Err,
		}
		if c.Passes == 0 {
			st.Scrub.Completed = time.Time{}
		}
	}
	return st
}

// inspectLogs reads the logs of an instance that does not run.
func inspectLogs(ctx context.Context, l layout, i state.Instance) (*trillian.Inspection, error) {
	cfg, err := l.logsConfig(i, nil)
	if err != nil {
		return nil, err
	}
	return trillian.Inspect(ctx, cfg)
}

// readLogs tells how the logs of an instance that does not run would be if it
// did.
func readLogs(ctx context.Context, l layout, i state.Instance) (logs []LogStatus, err error) {
	inspection, err := inspectLogs(ctx, l, i)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, inspection.Close()) }()
	for _, log := range logsOf(i) {
		st, err := inspection.State(ctx, log.tree)
		if err != nil {
			return logs, err
		}
		logs = append(logs, logStatus(log, st))
	}
	return logs, nil
}
