package e2etest

import (
	"net"
	"net/http"
	"sync"
)

// trap is an HTTP proxy that refuses everything and remembers who was asked
// for. Every program of a test is told to use it; none does for loopback, so
// what it hears of is a public name.
type trap struct {
	url string

	mu     sync.Mutex
	hosts  []string
	server *http.Server
}

// theTrap is the one of this test process; Main sets it before any test runs.
var theTrap *trap

func setTrap() (*trap, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	tr := &trap{url: "http://" + l.Addr().String()}
	tr.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.mu.Lock()
		tr.hosts = append(tr.hosts, r.Method+" "+r.Host+" through the proxy")
		tr.mu.Unlock()
		http.Error(w, "this test has no network", http.StatusBadGateway)
	})}
	go tr.server.Serve(l)
	theTrap = tr
	return tr, nil
}

func (tr *trap) caught() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return append([]string(nil), tr.hosts...)
}

// environ makes programs use the trap for every host but this one.
func (tr *trap) environ() []string {
	return []string{
		"HTTP_PROXY=" + tr.url, "HTTPS_PROXY=" + tr.url, "ALL_PROXY=" + tr.url,
		"http_proxy=" + tr.url, "https_proxy=" + tr.url, "all_proxy=" + tr.url,
		"NO_PROXY=127.0.0.1,localhost,::1", "no_proxy=127.0.0.1,localhost,::1",
	}
}
