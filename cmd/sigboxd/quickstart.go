package main

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/internal/state"
)

const (
	quickstartDir = "sigbox-quickstart"
	demoUser      = "demo@example.com"
	demoSubject   = "ci@example.com"
	// Files that only a quickstart has.
	demoPasswordFile = "demo-password"
	ciTokenFile      = "ci-token"
)

func quickstartCommand() *cobra.Command {
	var dir, listen string
	cmd := &cobra.Command{
		Use:   "quickstart",
		Short: "Make an instance for trying out, test it and serve it",
		Long: `Make an instance in DIR if there is none, with every key on this machine, a demo
user and a CI token; serve it, sign and verify a blob as a self-test, say what to
try next, and serve on until SIGTERM or SIGINT.

For production, use init and serve.`,
		Example: `  sigboxd quickstart
  sigboxd quickstart --dir /tmp/try --listen 127.0.0.1:9000`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("log-level") {
				// The text below is what a newcomer is here for.
				if err := cmd.Flags().Set("log-level", "warn"); err != nil {
					return err
				}
			}
			log, err := logger(cmd)
			if err != nil {
				return err
			}
			return quickstart(cmd.Context(), dir, listen, cmd.Flags().Changed("listen"), log, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&dir, "dir", quickstartDir, "the instance's folder")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "loopback address to serve on, HOST:PORT")
	return cmd
}

func quickstart(ctx context.Context, dir, listen string, listenGiven bool, log *slog.Logger, out io.Writer) error {
	switch _, err := state.Load(dir); {
	case errors.Is(err, state.ErrMissing):
		fmt.Fprintf(out, "Making an instance in %s …\n", dir)
		if err := makeQuickstart(ctx, dir, listen, log); err != nil {
			return explain(dir, err)
		}
	case err != nil:
		return explain(dir, err)
	case listenGiven:
		cfg, err := config.Load(dir)
		if err != nil {
			return explain(dir, fmt.Errorf("%w: %w", appliance.ErrConfig, err))
		}
		if cfg.Listen != listen {
			return cli.Hint(cli.Usage("the instance in %s was made for %s, not %s, and its trust material says so", dir, cfg.Listen, listen),
				"leave --listen out, or choose another --dir")
		}
	}

	a, err := appliance.Open(ctx, dir, log)
	if err != nil {
		return explain(dir, err)
	}
	cfg := a.Config()
	if !cfg.Quickstart {
		log.Warn("this instance was not made by quickstart")
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ran := make(chan error, 1)
	go func() { ran <- a.Run(ctx) }()

	begun := time.Now()
	if err := selfTest(ctx, dir, cfg.URL, a.Trust().RootChecksum()); err != nil {
		if ctx.Err() != nil {
			return <-ran // told to stop meanwhile
		}
		stop(err)
		return errors.Join(fmt.Errorf("self-test: %w", err), <-ran)
	}
	took := time.Since(begun)
	token, err := appliance.AskToken(ctx, dir, appliance.TokenRequest{Subject: demoSubject, TTL: "1h"})
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, ciTokenFile), []byte(token.Token+"\n"), 0o600)
	}
	if err != nil {
		stop(err)
		return errors.Join(err, <-ran)
	}
	printNext(out, next{
		Dir: dir, URL: cfg.URL, Root: a.Trust().RootChecksum(), Self: self(), Took: took, PasswordFile: filepath.Join(dir, demoPasswordFile),
		TokenFile: filepath.Join(dir, ciTokenFile),
	})
	return <-ran
}

// makeQuickstart makes the instance with a demo user.
func makeQuickstart(ctx context.Context, dir, listen string, log *slog.Logger) error {
	host, _, err := net.SplitHostPort(listen)
	if ip := net.ParseIP(host); err != nil || host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return cli.Hint(cli.Usage("--listen %q is not a loopback address: a quickstart is for this machine only", listen), "use init and serve, with TLS, for others to reach it")
	}
	b := make([]byte, 10)
	rand.Read(b) // never fails, or the runtime ends the program
	password := strings.ToLower(base32.StdEncoding.EncodeToString(b))
	hash, err := appliance.HashPassword([]byte(password))
	if err != nil {
		return err
	}
	cfg := config.Config{
		URL: "http://" + listen, Listen: listen, Quickstart: true, Operator: "sigbox quickstart",
		People: config.People{
			Users:  []config.User{{Email: demoUser, Username: "demo", PasswordHash: hash}},
			Grants: []string{"authorization_code", "device_code"},
		},
	}
	data, err := cfg.Marshal()
	if err != nil {
		return err
	}
	if _, err := appliance.Init(ctx, dir, data, time.Now(), log); err != nil {
		return err
	}
	return durable.WriteNew(filepath.Join(dir, demoPasswordFile), []byte(password+"\n"), 0o600)
}

// self is how this program is called, for the commands that are printed.
func self() string {
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/sigboxd"
	}
	return os.Args[0]
}

type next struct {
	Dir, URL, Root, Self, PasswordFile, TokenFile string
	Took                                          time.Duration
}

func printNext(out io.Writer, n next) {
	client := "sigbox"
	if strings.HasPrefix(n.Self, "go run") {
		client = "go run ./cmd/sigbox"
	}
	token := fmt.Sprintf(`"$(%s token --dir %s --subject %s)"`, n.Self, n.Dir, demoSubject)
	who := fmt.Sprintf("--certificate-identity %s --certificate-oidc-issuer %s/ci", demoSubject, n.URL)
	fmt.Fprintf(out, `
sigbox is ready at %[1]s (self-test: signed and verified a blob in %[2]v).

NOT FOR PRODUCTION: every key, also those that belong offline, is in %[3]s.

TUF root SHA-256, for clients to pin:
  %[4]s

Try it, in another terminal. IMAGE is REGISTRY/NAME@sha256:…

  With stock cosign v3 (cosign v2: see README.md):
    cosign initialize --mirror %[1]s/tuf --root %[1]s/tuf/1.root.json --root-checksum %[4]s
    cosign sign --yes --identity-token %[5]s IMAGE
    cosign verify %[6]s IMAGE
    rekor-cli search --rekor_server %[1]s --sha sha256:…

  With sigbox:
    %[7]s trust init --url %[1]s --root-checksum %[4]s
    %[7]s sign --identity-token %[5]s IMAGE
    %[7]s verify %[6]s IMAGE
    %[7]s exec -- cosign verify %[6]s IMAGE

  Each token works once. One for a first try, good for an hour, is in %[8]s.
  People sign in at %[1]s/oidc: %[9]s, with the password in %[10]s.

Ctrl-C stops it; the same command serves it again, with all it holds.
`, n.URL, n.Took.Round(time.Millisecond), n.Dir, n.Root, token, who, client, n.TokenFile, demoUser, n.PasswordFile)
}
