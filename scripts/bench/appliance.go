package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

const subject = "bench@example.com"

// Report is the measurement of the appliance.
type Report struct {
	Taken     time.Time `json:"taken"`
	Version   string    `json:"version"`
	Machine   string    `json:"machine"`
	Fsync     Quantiles `json:"fsync_4k"`
	Instances []Measure `json:"instances"`
	Client    *Client   `json:"client"`
}

// Client is sigbox as a whole process, with nothing to ask the network for.
type Client struct {
	Bytes      int64     `json:"binary_bytes"`
	VerifyBlob Quantiles `json:"verify_blob"`
}

// Measure is of one instance.
type Measure struct {
	Sequencing        string         `json:"sequencing"`
	StartToReady      []Milliseconds `json:"start_to_ready_ms"`
	IdleRSS           int64          `json:"idle_rss_bytes"`
	BytesPerSignature float64        `json:"disk_bytes_per_signature"`
	Load              *Load          `json:"load"`
}

func runAppliance(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	var plan plan
	planFlags(f, &plan)
	work := f.String("dir", "", "folder to make the instances in: its disk is what is measured (default: a temporary one)")
	program := f.String("sigboxd", "", "program to measure (default: built from this module)")
	idle := f.Duration("idle", 10*time.Second, "rest before the idle memory is read")
	asJSON := f.Bool("json", false, "print JSON")
	if err := f.Parse(args); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(*work, "sigbox-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if *program == "" {
		if *program, err = build(ctx, dir, "sigboxd"); err != nil {
			return err
		}
	}
	sigbox, err := build(ctx, dir, "sigbox")
	if err != nil {
		return err
	}
	version, err := exec.CommandContext(ctx, *program, "version").Output()
	if err != nil {
		return fmt.Errorf("sigboxd version: %w", err)
	}
	first, _, _ := strings.Cut(string(version), "\n")
	report := Report{Taken: time.Now().UTC(), Version: first, Machine: machine()}
	if report.Fsync, err = fsyncs(dir); err != nil {
		return fmt.Errorf("measuring fsync: %w", err)
	}
	for _, onWrite := range []bool{true, false} {
		a := &appliance{program: *program, dir: filepath.Join(dir, fmt.Sprintf("instance-%t", onWrite)), idle: *idle}
		m, err := a.measure(ctx, plan, onWrite)
		if err != nil {
			return errors.Join(err, a.stop())
		}
		report.Instances = append(report.Instances, m)
		if report.Client == nil {
			if report.Client, err = a.measureClient(ctx, sigbox); err != nil {
				return errors.Join(err, a.stop())
			}
		}
	}
	if *asJSON {
		return writeJSON(os.Stdout, report)
	}
	report.markdown(os.Stdout)
	return nil
}

// An appliance is a sigboxd of our own.
type appliance struct {
	program, dir, url string
	idle              time.Duration
	cmd               *exec.Cmd
	ended             chan struct{} // closed when cmd has been waited for
	log               bytes.Buffer
}

func (a *appliance) measure(ctx context.Context, plan plan, onWrite bool) (Measure, error) {
	m := Measure{Sequencing: "on write"}
	if err := a.make(ctx, onWrite); err != nil {
		return m, err
	}
	if !onWrite {
		m.Sequencing = "timed"
	}
	for range 5 {
		took, err := a.start(ctx)
		if err != nil {
			return m, err
		}
		m.StartToReady = append(m.StartToReady, ms(took))
		if err := a.stop(); err != nil {
			return m, err
		}
	}
	slices.Sort(m.StartToReady)
	before, err := usage(a.dir)
	if err != nil {
		return m, err
	}
	if _, err := a.start(ctx); err != nil {
		return m, err
	}
	select { // the runtime gives memory back after a while
	case <-time.After(a.idle):
	case <-ctx.Done():
		return m, ctx.Err()
	}
	server := &process{a.cmd.Process.Pid}
	m.IdleRSS = server.rss()

	trusted, err := fetch(ctx, a.url+"/trust/trusted_root.json")
	if err != nil {
		return m, err
	}
	verifier, err := keyless.NewVerifier(trusted, subject, a.url+"/ci", true)
	if err != nil {
		return m, err
	}
	token := keyless.SocketTokens(filepath.Join(a.dir, "run", "admin.sock"), subject, plan.maxWorkers())
	client := keyless.NewClient(keyless.Services{Fulcio: a.url, Rekor: a.url, TSA: a.url}, token, plan.maxWorkers())
	if m.Load, err = plan.measure(ctx, client, verifier, server); err != nil {
		return m, fmt.Errorf("%w\n%s", err, a.log.Bytes())
	}
	// Stopped, so that write-ahead logs have gone into their databases.
	if err := a.stop(); err != nil {
		return m, err
	}
	after, err := usage(a.dir)
	if err != nil {
		return m, err
	}
	signatures := plan.warmup + m.Load.Sequential.Signatures
	for _, c := range m.Load.Concurrent {
		signatures += c.Signatures
	}
	m.BytesPerSignature = float64(after-before) / float64(max(1, signatures))
	return m, nil
}

// measureClient starts the instance once more, signs a blob, and runs sigbox on
// it.
func (a *appliance) measureClient(ctx context.Context, sigbox string) (*Client, error) {
	info, err := os.Stat(sigbox)
	if err != nil {
		return nil, err
	}
	if _, err := a.start(ctx); err != nil {
		return nil, err
	}
	trusted, err := fetch(ctx, a.url+"/trust/trusted_root.json")
	if err != nil {
		return nil, err
	}
	content := []byte("measured")
	token := keyless.SocketTokens(filepath.Join(a.dir, "run", "admin.sock"), subject, 1)
	client := keyless.NewClient(keyless.Services{Fulcio: a.url, Rekor: a.url, TSA: a.url}, token, 1)
	s, err := client.Sign(ctx, sha256.Sum256(content))
	if err != nil {
		return nil, err
	}
	if err := a.stop(); err != nil {
		return nil, err
	}
	b, err := s.Bundle()
	if err != nil {
		return nil, err
	}
	bundle, err := b.MarshalJSON()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(sigbox)
	for name, data := range map[string][]byte{"blob": content, "blob.json": bundle, "trusted_root.json": trusted} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	var took []time.Duration
	for range 20 {
		cmd := exec.CommandContext(ctx, sigbox, "verify-blob", "--trusted-root", "trusted_root.json", "--bundle", "blob.json",
			"--certificate-identity", subject, "--certificate-oidc-issuer", a.url+"/ci", "blob")
		cmd.Dir = dir
		began := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("sigbox verify-blob: %w\n%s", err, out)
		}
		took = append(took, time.Since(began))
	}
	return &Client{Bytes: info.Size(), VerifyBlob: quantiles(took)}, nil
}

// build compiles a program as it is released.
func build(ctx context.Context, dir, program string) (string, error) {
	out := filepath.Join(dir, program)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "github.com/sigbox/sigbox/cmd/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("building %s: %w", program, err)
	}
	return out, nil
}

// make makes the instance.
func (a *appliance) make(ctx context.Context, onWrite bool) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	a.url = "http://" + addr
	out, err := exec.CommandContext(ctx, a.program, "init", "--dir", a.dir, "--url", a.url, "--listen", addr).CombinedOutput()
	if err != nil {
		return fmt.Errorf("sigboxd init: %w\n%s", err, out)
	}
	if onWrite {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(a.dir, "sigbox.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.WriteString(f, "\nlog:\n  sequence_on_write: false\n")
	return errors.Join(err, f.Close())
}

// start starts the process and returns how long it took to be ready.
func (a *appliance) start(ctx context.Context) (time.Duration, error) {
	a.log.Reset()
	a.cmd = exec.Command(a.program, "--log-level", "warn", "serve", "--dir", a.dir)
	a.cmd.Stderr = &a.log
	began := time.Now()
	if err := a.cmd.Start(); err != nil {
		return 0, err
	}
	cmd, ended := a.cmd, make(chan struct{})
	a.ended = ended
	go func() { cmd.Wait(); close(ended) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return 0, fmt.Errorf("sigboxd ended: %s\n%s", cmd.ProcessState, a.log.Bytes())
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-tick.C:
		}
		resp, err := http.Get(a.url + "/readyz")
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return time.Since(began), nil
		}
	}
}

// stop ends the process, if there is one, and waits for it.
func (a *appliance) stop() error {
	if a.cmd == nil {
		return nil
	}
	cmd := a.cmd
	a.cmd = nil
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-a.ended:
		return nil
	case <-time.After(time.Minute):
		return errors.Join(errors.New("sigboxd does not stop"), cmd.Process.Kill())
	}
}

func machine() string {
	model := "unknown processor"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(data)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s, %s/%s, %s", runtime.NumCPU(), model, runtime.GOOS, runtime.GOARCH, runtime.Version())
}
