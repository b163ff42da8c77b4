package inproc

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	client := &http.Client{Transport: Transport{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Path", r.URL.Path+"?"+r.URL.RawQuery+" "+r.Host)
		w.WriteHeader(http.StatusTeapot)
		w.WriteHeader(http.StatusOK) // too late
		w.Write(body)
	})}}
	resp, err := client.Post("http://log.example/ct/v1/x?a=b", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusTeapot || string(body) != "hello" || resp.Header.Get("X-Path") != "/ct/v1/x?a=b log.example" || resp.Request == nil {
		t.Errorf("%+v %q", resp, body)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://log.example/", nil)
	if _, err := client.Do(req); err == nil {
		t.Error("a cancelled request was served")
	}
}
