package keyless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/unixsocket"
)

// A TokenSource gives an OIDC token for one signature.
type TokenSource func(ctx context.Context) (string, error)

// CommandTokens runs a command for each token and takes its standard output.
func CommandTokens(command string, args ...string) TokenSource {
	return func(ctx context.Context) (string, error) {
		cmd := exec.CommandContext(ctx, command, args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", command, err, bytes.TrimSpace(stderr.Bytes()))
		}
		return strings.TrimSpace(string(out)), nil
	}
}

// URLTokens gets each token from a URL: the body of the answer, or the member
// "token", "access_token" or "id_token" of it.
func URLTokens(url string) TokenSource {
	client := &http.Client{Timeout: time.Minute}
	return func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		return tokenFrom(client, req)
	}
}

// SocketTokens asks a sigboxd's administration socket. One process per token,
// as "sigboxd token" is, would measure the starting of processes.
func SocketTokens(socket, subject string, workers int) TokenSource {
	client := &http.Client{
		Timeout: time.Minute,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return unixsocket.Dial(ctx, socket)
			},
			MaxIdleConnsPerHost: 2 * workers,
		},
	}
	return func(ctx context.Context) (string, error) {
		body, err := json.Marshal(map[string]string{"subject": subject, "ttl": "10m"})
		if err != nil {
			return "", err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sigboxd/token", bytes.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		return tokenFrom(client, req)
	}
}

func tokenFrom(client *http.Client, req *http.Request) (string, error) {
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", &StatusError{Code: resp.StatusCode, Body: string(data[:min(len(data), 500)])}
	}
	var answer struct {
		Token       string `json:"token"`
		IDToken     string `json:"id_token"`
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(data, &answer) != nil {
		return strings.TrimSpace(string(data)), nil
	}
	for _, t := range []string{answer.Token, answer.IDToken, answer.AccessToken} {
		if t != "" {
			return t, nil
		}
	}
	return "", errors.New("no token in the answer")
}
