package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/sigbox/sigbox/client"
	"github.com/spf13/cobra"
)

// app is what the commands share.
type app struct {
	profile string
	timeout time.Duration
	// childCode is the exit code of the command that exec ran.
	childCode int
}

func (a *app) root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sigbox",
		Short: "Sign and verify with a private Sigstore",
		Long: `sigbox signs and verifies blobs and container images with a private Sigstore,
and sets cosign, rekor-cli and other clients up for it.

It works with the one instance that was pinned by "sigbox trust init"; there is
no default. Exit codes: 0 done; 1 could not be done; 2 usage or configuration;
3 checked, and the answer is no.`,
		Example: `  sigbox trust init --url https://sigstore.example --root-checksum SHA256
  sigbox sign-blob release.tar.gz --bundle release.sigstore.json
  sigbox verify-blob release.tar.gz --bundle release.sigstore.json \
    --certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc
  sigbox exec -- cosign verify …`,
	}
	cmd.PersistentFlags().StringVar(&a.profile, "profile", os.Getenv("SIGBOX_PROFILE"), "pinned instance to work with (default: the one pinned last; environment: SIGBOX_PROFILE)")
	cmd.PersistentFlags().DurationVarP(&a.timeout, "timeout", "t", 3*time.Minute, "limit on the whole command")
	_ = cmd.RegisterFlagCompletionFunc("profile", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		home, err := client.FindHome()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		names, err := home.Names()
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	cmd.AddCommand(a.trust(), a.signBlob(), a.verifyBlob(), a.sign(), a.verify(), a.exec(), a.env(), a.login(), a.version())
	return cmd
}

// limit is the command's context with its timeout.
func (a *app) limit(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(cmd.Context(), a.timeout, fmt.Errorf("not done within %s (--timeout)", a.timeout))
}

// open is the profile that the flags name.
func (a *app) open() (*client.Profile, error) {
	home, err := client.FindHome()
	if err != nil {
		return nil, err
	}
	return home.Open(a.profile)
}

// printJSON writes an answer for scripts.
func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// say writes a line for people, which is never data.
func say(cmd *cobra.Command, format string, args ...any) error {
	_, err := fmt.Fprintln(cmd.ErrOrStderr(), strings.Map(printable, fmt.Sprintf(format, args...)))
	return err
}

// printable drops what would steer a terminal: names in certificates and
// answers of servers are other people's.
func printable(r rune) rune {
	if (r < 0x20 && r != '\n' && r != '\t') || (r >= 0x7f && r < 0xa0) {
		return -1
	}
	return r
}
