package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/spf13/cobra"
)

func (a *app) exec() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec -- COMMAND [ARG…]",
		Short: "Run another Sigstore client set up for the pinned instance",
		Long: `Run a command with the environment that sets cosign, rekor-cli and other Sigstore
clients up for the pinned instance. No "cosign initialize" is needed: cosign gets
a trust folder of its own (TUF_ROOT), which starts from the pinned root. Variables
that would send these clients elsewhere are removed. The command's exit code is
passed on.

cosign v2 sends tokens to the public instance unless it is given URLs; it is told
from v3 by what its build says of itself, and whatever cannot be told gets them.`,
		Example: `  sigbox exec -- cosign sign --identity-token TOKEN --yes registry.example/app@sha256:…
  sigbox exec -- cosign verify --certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc registry.example/app@sha256:…
  sigbox exec -- rekor-cli loginfo`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			env, err := p.Environment(ctx, args[0], args[1:]...)
			if err != nil {
				return err
			}
			return a.runChild(cmd.Context(), cmd, args, env.Apply(os.Environ()))
		},
	}
	// What follows the command's name is the command's.
	cmd.Flags().SetInterspersed(false)
	return cmd
}

// runChild runs the command to its end and keeps its exit code. The timeout is
// not the child's: it has its own.
func (a *app) runChild(ctx context.Context, cmd *cobra.Command, args, environ []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return cli.Hint(fmt.Errorf("running %s: %w", args[0], err), "is it installed and on the PATH?")
	}
	child := exec.CommandContext(ctx, path, args[1:]...)
	child.Args[0] = args[0]
	child.Env = environ
	child.Stdin, child.Stdout, child.Stderr = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
	// It is asked to end first, as a terminal does, and killed only later.
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 10 * time.Second
	err = child.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		a.childCode = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			a.childCode = 128 + int(status.Signal())
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("running %s: %w", args[0], err)
	}
	return nil
}
