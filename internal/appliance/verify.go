package appliance

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sigbox/sigbox/internal/front"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/trillian/verify"
)

// LogReport is what computing a log anew, from its entries, came to.
type LogReport struct {
	LogStatus
	// Leaves and Bytes are how much of it was read.
	Leaves uint64        `json:"leaves"`
	Bytes  int64         `json:"bytes"`
	Took   time.Duration `json:"took_ns"`
	// Findings are what is damaged.
	Findings []Finding `json:"findings,omitempty"`
}

// Sound says that nothing was found.
func (r LogReport) Sound() bool { return len(r.Findings) == 0 && r.Frozen == nil }

// of adds how the log is. Size and root stay those that were computed.
func (r *LogReport) of(st LogStatus) {
	st.Size, st.Root = r.Size, r.Root
	r.LogStatus = st
}

// VerifyOptions choose the logs, by name; none means all.
type VerifyOptions struct {
	Logs []string
	// Progress, if set, is told now and then how many entries of a log are done.
	Progress func(log string, done, size uint64)
}

// progressInterval is the least time between two reports of progress.
const progressInterval = 200 * time.Millisecond

// VerifyLogs computes logs of the instance in dir anew, all of them: in its
// process if it runs, where what is found freezes the log, else from the files,
// which are not written to.
func VerifyLogs(ctx context.Context, dir string, opts VerifyOptions) (reports []LogReport, err error) {
	l, instance, err := locate(dir)
	if err != nil {
		return nil, err
	}
	if _, err := selectLogs(instance, opts.Logs); err != nil {
		return nil, err
	}
	if opts.Progress == nil {
		opts.Progress = func(string, uint64, uint64) {}
	}
	reports, err = askVerify(ctx, l.socket(), opts)
	if !errors.Is(err, ErrNotRunning) {
		return reports, err
	}
	if instance, err = l.knowInstance(ctx, instance); err != nil {
		return nil, err
	}
	logs, err := selectLogs(instance, opts.Logs)
	if err != nil {
		return nil, err
	}
	// Nobody may begin to write meanwhile.
	lock, err := state.Acquire(l.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	inspection, err := inspectLogs(ctx, l, instance)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, inspection.Close()) }()
	for _, log := range logs {
		report, err := reportOn(ctx, log, throttled(log.name, opts.Progress), inspection.Verify)
		if err != nil {
			return reports, err
		}
		st, err := inspection.State(ctx, log.tree)
		if err != nil {
			return reports, err
		}
		report.of(logStatus(log, st))
		reports = append(reports, report)
	}
	return reports, nil
}

func throttled(name string, progress func(string, uint64, uint64)) func(done, size uint64) {
	var last time.Time
	return func(done, size uint64) {
		if now := time.Now(); now.Sub(last) >= progressInterval || done == size {
			last = now
			progress(name, done, size)
		}
	}
}

func reportOn(ctx context.Context, log namedLog, progress func(done, size uint64),
	compute func(ctx context.Context, tree int64, progress func(done, size uint64)) (verify.Result, error),
) (LogReport, error) {
	begun := time.Now()
	r, err := compute(ctx, log.tree, progress)
	if err != nil {
		return LogReport{}, fmt.Errorf("verifying log %s: %w", log.name, err)
	}
	report := LogReport{Leaves: r.Leaves, Bytes: r.Bytes, Took: time.Since(begun), Findings: r.Findings}
	report.Name, report.TreeID, report.Size, report.Root = log.name, log.tree, r.Size, hex.EncodeToString(r.Root)
	return report, nil
}

// verifyLine is a line of the answer over the administration socket: progress,
// a report, or an error.
type verifyLine struct {
	Log    string     `json:"log,omitempty"`
	Done   uint64     `json:"done,omitempty"`
	Size   uint64     `json:"size,omitempty"`
	Report *LogReport `json:"report,omitempty"`
	Error  string     `json:"error,omitempty"`
	End    bool       `json:"end,omitempty"`
}

type verifyRequest struct {
	Logs []string `json:"logs,omitempty"`
}

// serveVerify answers with lines of JSON, as it may take long.
func (a *Appliance) serveVerify(w http.ResponseWriter, r *http.Request) {
	var req verifyRequest
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	d.DisallowUnknownFields()
	err := d.Decode(&req)
	var logs []namedLog
	if err == nil {
		logs, err = selectLogs(a.instance, req.Logs)
	}
	if err != nil {
		front.Error(w, http.StatusBadRequest, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	lines, out := json.NewEncoder(w), http.NewResponseController(w)
	say := func(line verifyLine) {
		lines.Encode(line) // a client that has gone hears nothing, and ends the work with its context
		out.Flush()
	}
	for _, log := range logs {
		report, err := reportOn(r.Context(), log, throttled(log.name, func(name string, done, size uint64) {
			say(verifyLine{Log: name, Done: done, Size: size})
		}), a.logs.Verify)
		if err == nil {
			st, e := a.logs.State(log.tree)
			report.of(logStatus(log, st))
			err = e
		}
		if err != nil {
			say(verifyLine{Error: err.Error()})
			return
		}
		say(verifyLine{Report: &report})
	}
	say(verifyLine{End: true})
}

func askVerify(ctx context.Context, socket string, opts VerifyOptions) (reports []LogReport, err error) {
	body, err := json.Marshal(verifyRequest{opts.Logs})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sigboxd/verify-logs", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := adminClient(socket).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the running instance answered %s: is it of another version?", resp.Status)
	}
	lines := json.NewDecoder(resp.Body)
	for {
		var line verifyLine
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return reports, errors.New("the instance stopped before it was through")
		case err != nil:
			return reports, err
		case line.Error != "":
			return reports, errors.New(line.Error)
		case line.Report != nil:
			reports = append(reports, *line.Report)
		case line.End:
			return reports, nil
		default:
			opts.Progress(line.Log, line.Done, line.Size)
		}
	}
}

// AdoptAnchor makes an anchor for a log that has lost its own. The stored
// entries must reproduce the root that the operator knows to be the newest that
// was published. The instance must not run.
func AdoptAnchor(ctx context.Context, dir, name string, size uint64, root []byte, progress func(log string, done, size uint64)) (err error) {
	l, instance, err := locate(dir)
	if err == nil {
		instance, err = l.knowInstance(ctx, instance)
	}
	if err != nil {
		return err
	}
	logs, err := selectLogs(instance, []string{name})
	if err != nil {
		return err
	}
	lock, err := state.Acquire(l.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	inspection, err := inspectLogs(ctx, l, instance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inspection.Close()) }()
	if progress == nil {
		progress = func(string, uint64, uint64) {}
	}
	return inspection.Adopt(ctx, logs[0].tree, size, root, time.Now(), throttled(name, progress))
}
