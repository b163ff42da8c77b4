package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/front"
	"github.com/sigbox/sigbox/internal/unixsocket"
)

// Status is what "sigboxd status" tells.
type Status struct {
	Running    bool        `json:"running"`
	Ready      bool        `json:"ready"`
	Problems   []Problem   `json:"problems,omitempty"`
	ID         string      `json:"id"`
	URL        string      `json:"url"`
	Version    string      `json:"version,omitempty"`
	PID        int         `json:"pid,omitempty"`
	Started    time.Time   `json:"started,omitzero"`
	RootSHA256 string      `json:"root_sha256"`
	Logs       []LogStatus `json:"logs,omitempty"`
	Expiries   []Expiry    `json:"expiries,omitempty"`
	Issuers    []string    `json:"issuers,omitempty"`
	Quickstart bool        `json:"quickstart,omitempty"`
	// Epoch counts how often the instance was restored from a backup.
	Epoch int `json:"epoch"`
	// Archive is known while an instance runs that has one.
	Archive *ArchiveStatus `json:"archive,omitempty"`
}

// Expiry is a date after which something stops being believed.
type Expiry struct {
	What    string    `json:"what"`
	Expires time.Time `json:"expires"`
}

// TokenRequest asks the administration socket for a token of the /ci issuer.
type TokenRequest struct {
	Subject string `json:"subject"`
	TTL     string `json:"ttl,omitempty"` // as time.ParseDuration reads it
}

// TokenAnswer is a token and what it will become.
type TokenAnswer struct {
	Token    string    `json:"token"`
	Identity string    `json:"identity"`
	Expires  time.Time `json:"expires"`
}

// ErrNotRunning means that nobody answers on the administration socket.
var ErrNotRunning = errors.New("the instance is not running")

// adminHandler serves the administration socket. Who can open the socket, by
// its file mode, is an administrator.
func (a *Appliance) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, a.Status(r.Context()))
	})
	mux.HandleFunc("POST /verify-logs", a.serveVerify)
	mux.HandleFunc("POST /backup", a.serveBackup)
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		var req TokenRequest
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
		d.DisallowUnknownFields()
		if err := d.Decode(&req); err != nil {
			front.Error(w, http.StatusBadRequest, "reading request: "+err.Error())
			return
		}
		answer, err := mint(a.ci, req)
		if err != nil {
			front.Error(w, http.StatusBadRequest, strings.TrimPrefix(err.Error(), ErrRequest.Error()+": "))
			return
		}
		writeJSON(w, answer)
	})
	mux.Handle("GET "+ctPath+"/ct/v1/", a.ct) // to be read whatever stands before the origin
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // a client that has gone hears nothing
}

// adminClient talks to the instance in dir over its socket.
func adminClient(socket string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := unixsocket.Dial(ctx, socket)
				if err != nil {
					return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
				}
				return c, nil
			},
		},
	}
}

func askAdmin(ctx context.Context, socket, method, path string, body io.Reader, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://sigboxd"+path, body)
	if err != nil {
		return err
	}
	resp, err := adminClient(socket).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var e struct{ Message string }
		if json.Unmarshal(data, &e) != nil || e.Message == "" {
			e.Message = resp.Status
		}
		if resp.StatusCode == http.StatusBadRequest {
			return fmt.Errorf("%w: %s", ErrRequest, e.Message)
		}
		return errors.New(e.Message)
	}
	return json.Unmarshal(data, answer)
}
