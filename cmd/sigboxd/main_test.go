package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/unixsocket"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sigboxd": main})
}

// TestScripts runs each command as a person would.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			env.Setenv("ADDR", l.Addr().String())
			return l.Close()
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":   cmdReady,
			"unready": cmdUnready,
			"newer":   cmdNewer,
			"get":     cmdGet,
			"appears": cmdAppears,
			"exits":   cmdExits,
		},
	})
}

// cmdReady waits until the instance in a folder says that it would sign.
func cmdReady(ts *testscript.TestScript, neg bool, args []string) { awaitStatus(ts, args[0], true) }

// cmdUnready waits until it answers, and says that it would not.
func cmdUnready(ts *testscript.TestScript, neg bool, args []string) { awaitStatus(ts, args[0], false) }

func awaitStatus(ts *testscript.TestScript, dir string, ready bool) {
	socket := filepath.Join(ts.MkAbs(dir), "run", "admin.sock")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return unixsocket.Dial(ctx, socket)
	}}}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get("http://sigboxd/status")
		if err == nil {
			var st appliance.Status
			err = json.NewDecoder(resp.Body).Decode(&st)
			resp.Body.Close()
			if err == nil && st.Ready == ready {
				return
			}
		}
		if time.Now().After(deadline) {
			ts.Fatalf("ready is not %t after a minute: %v", ready, err)
		}
	}
}

// cmdExits runs a command that must end with an exit code.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); !errors.As(err, &exit) || fmt.Sprint(exit.ExitCode()) != args[0] {
		ts.Fatalf("%v, want exit code %s", err, args[0])
	}
}

// cmdAppears waits for a file.
func cmdAppears(ts *testscript.TestScript, neg bool, args []string) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s did not appear within a minute", args[0])
		}
	}
}

// cmdNewer makes the instance in a folder one of a later schema.
func cmdNewer(ts *testscript.TestScript, neg bool, args []string) {
	path := filepath.Join(ts.MkAbs(args[0]), "instance.json")
	data, err := os.ReadFile(path)
	ts.Check(err)
	ts.Check(os.WriteFile(path, []byte(strings.Replace(string(data), `"schema": 1`, `"schema": 99`, 1)), 0o600))
}

// cmdGet expects a status for GET URL.
func cmdGet(ts *testscript.TestScript, neg bool, args []string) {
	resp, err := http.Get(args[1])
	for deadline := time.Now().Add(time.Minute); errors.Is(err, syscall.ECONNREFUSED) && time.Now().Before(deadline); resp, err = http.Get(args[1]) {
		time.Sleep(20 * time.Millisecond) // it is being started
	}
	ts.Check(err)
	resp.Body.Close()
	if got := fmt.Sprint(resp.StatusCode); got != args[0] {
		ts.Fatalf("GET %s: %s, want %s", args[1], got, args[0])
	}
}
