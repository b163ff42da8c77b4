// Command bench measures a Sigstore instance.
//
// Without arguments it makes sigboxd instances of its own, one that sequences
// on write and one that sequences by the clock, and measures the whole: start,
// latency, throughput, memory, processor time, disk, verification. "bench load"
// is the load generator alone, against any instance given its URLs, so that
// others can be measured by the same means.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/scripts/bench/keyless"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench: error:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == "load" {
		return runLoad(ctx, args[1:])
	}
	return runAppliance(ctx, args)
}

func runLoad(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("bench load", flag.ContinueOnError)
	var plan plan
	planFlags(f, &plan)
	var services keyless.Services
	url := f.String("url", "", "one origin for Fulcio, Rekor and the timestamp authority")
	f.StringVar(&services.Fulcio, "fulcio-url", "", "Fulcio")
	f.StringVar(&services.Rekor, "rekor-url", "", "Rekor, version 1 of its API")
	f.StringVar(&services.TSA, "timestamp-url", "", "timestamp authority; none: no timestamps")
	tokenCommand := f.String("token-command", "", "command that prints an OIDC token; runs once for each signature")
	tokenURL := f.String("token-url", "", "URL that answers an OIDC token")
	tokenSocket := f.String("token-socket", "", "administration socket of a sigboxd (DIR/run/admin.sock)")
	subject := f.String("subject", "bench@example.com", "subject to ask of --token-socket, and the identity to verify")
	issuer := f.String("certificate-oidc-issuer", "", "issuer to verify (default: URL/ci)")
	trusted := f.String("trusted-root", "", "file or URL of trusted_root.json (default: URL/trust/trusted_root.json)")
	asJSON := f.Bool("json", false, "print JSON")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *url != "" {
		base := strings.TrimSuffix(*url, "/")
		for _, u := range []*string{&services.Fulcio, &services.Rekor, &services.TSA} {
			if *u == "" {
				*u = base
			}
		}
		if *issuer == "" {
			*issuer = base + "/ci"
		}
		if *trusted == "" {
			*trusted = base + "/trust/trusted_root.json"
		}
	}
	if services.Fulcio == "" || services.Rekor == "" || *issuer == "" || *trusted == "" {
		return errors.New("--url, or --fulcio-url, --rekor-url, --certificate-oidc-issuer and --trusted-root are needed")
	}
	var token keyless.TokenSource
	switch {
	case *tokenSocket != "":
		token = keyless.SocketTokens(*tokenSocket, *subject, plan.maxWorkers())
	case *tokenURL != "":
		token = keyless.URLTokens(*tokenURL)
	case *tokenCommand != "":
		token = keyless.CommandTokens("sh", "-c", *tokenCommand)
	default:
		return errors.New("--token-socket, --token-url or --token-command is needed")
	}
	root, err := fetch(ctx, *trusted)
	if err != nil {
		return fmt.Errorf("trusted root: %w", err)
	}
	verifier, err := keyless.NewVerifier(root, *subject, *issuer, services.TSA != "")
	if err != nil {
		return err
	}
	result, err := plan.measure(ctx, keyless.NewClient(services, token, plan.maxWorkers()), verifier, nil)
	if err != nil {
		return err
	}
	if *asJSON {
		return writeJSON(os.Stdout, result)
	}
	result.markdown(os.Stdout)
	return nil
}

// fetch reads a file or a URL.
func fetch(ctx context.Context, where string) ([]byte, error) {
	if !strings.Contains(where, "://") {
		return os.ReadFile(where)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Timeout: time.Minute}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", where, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 16<<20))
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
