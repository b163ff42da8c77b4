package e2etest

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/sigbox/sigbox/e2e/stock"
)

// A Registry is an OCI registry on loopback.
type Registry struct {
	Address string // HOST:PORT
}

// Distribution starts a CNCF distribution registry in a process of its own. It
// has no referrers API: clients fall back to the tag scheme of OCI 1.1.
func Distribution(t testing.TB) *Registry {
	t.Helper()
	p := NewProgram(t, stock.Path(t, stock.Registry),
		"OTEL_TRACES_EXPORTER=none", "OTEL_METRICS_EXPORTER=none", "OTEL_LOGS_EXPORTER=none")
	r := &Registry{Address: FreeAddress(t)}
	config := filepath.Join(p.Dir, "config.yml")
	err := os.WriteFile(config, fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
http: {addr: %s}
`, filepath.Join(p.Dir, "data"), r.Address), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(p.Path, "serve", config)
	cmd.Dir, cmd.Env = p.Dir, p.environ()
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(stopLimit):
			cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("log of the registry:\n%s", tail(said.String(), 2<<10))
		}
	})
	r.wait(t, ended)
	return r
}

// Referrers starts go-containerregistry's registry, which has the referrers API.
func Referrers(t testing.TB) *Registry {
	t.Helper()
	s := httptest.NewServer(registry.New(
		registry.WithReferrersSupport(true),
		registry.Logger(log.New(io.Discard, "", 0)),
	))
	t.Cleanup(s.Close)
	return &Registry{Address: s.Listener.Addr().String()}
}

func (r *Registry) wait(t testing.TB, ended <-chan struct{}) {
	t.Helper()
	Eventually(t, startLimit, "the registry to answer", func() bool {
		select {
		case <-ended:
			t.Fatal("the registry ended")
		default:
		}
		resp, err := http.Get("http://" + r.Address + "/v2/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}
