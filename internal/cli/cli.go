// Package cli holds what both programs do alike: exit codes, and errors on
// standard error as "NAME: error: …" followed by "NAME: hint: …".
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Exit codes of both programs.
const (
	ExitOK     = 0 // done
	ExitFailed = 1 // could not be done
	ExitUsage  = 2 // usage or configuration
	ExitNo     = 3 // checked, and the answer is no
)

// Error carries what the person at the keyboard needs: an exit code and, where
// there is one, the command that helps.
type Error struct {
	Code int    // one of the Exit constants
	Hint string // one line, without the program's name; may be empty
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint wraps err so that the hint is printed below it. The exit code that err
// carries already is kept.
func Hint(err error, format string, args ...any) error {
	return &Error{Code: Code(err), Hint: fmt.Sprintf(format, args...), Err: err}
}

// Usage is an error of usage or configuration (exit code 2).
func Usage(format string, args ...any) error {
	return &Error{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// No is a check whose answer is no (exit code 3).
func No(format string, args ...any) error {
	return &Error{Code: ExitNo, Err: fmt.Errorf(format, args...)}
}

// Code is the exit code for err: the one it carries, else ExitFailed, and
// ExitOK for nil.
func Code(err error) int {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	default:
		return ExitFailed
	}
}

// Run executes root with the arguments and reports its error on stderr.
func Run(ctx context.Context, root *cobra.Command, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	// Cobra would offer the flags that linked libraries define for their own
	// programs.
	pflag.CommandLine = pflag.NewFlagSet(root.Name(), pflag.ContinueOnError)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	mark(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if r := (*ran)(nil); !errors.As(err, &r) && Code(err) == ExitFailed {
		// Cobra found it before the command ran: a flag, an argument, a name.
		err = Hint(Usage("%w", err), "%s --help", cmd.CommandPath())
	}
	fmt.Fprintf(stderr, "%s: error: %v\n", root.Name(), err)
	for e := err; e != nil; e = errors.Unwrap(e) {
		if c, ok := e.(*Error); ok && c.Hint != "" {
			fmt.Fprintf(stderr, "%s: hint: %s\n", root.Name(), c.Hint)
		}
	}
	return Code(err)
}

// ran marks an error that a command's own code returned.
type ran struct{ error }

func (r *ran) Unwrap() error { return r.error }

// mark tells cobra's errors from the commands' own, and makes a command that
// only groups others ask for one.
func mark(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			if err := run(c, args); err != nil {
				return &ran{err}
			}
			return nil
		}
	} else if cmd.HasSubCommands() && cmd.Run == nil {
		cmd.Args = cobra.NoArgs
		cmd.RunE = func(c *cobra.Command, _ []string) error {
			c.SetOut(c.ErrOrStderr()) // standard output is data
			if err := c.Help(); err != nil {
				return err
			}
			return errors.New("a command is needed")
		}
	}
	for _, c := range cmd.Commands() {
		mark(c)
	}
}

// SignalContext is cancelled by the first SIGINT or SIGTERM; a second one exits
// at once.
func SignalContext() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ch := make(chan os.Signal, 2)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		s, ok := <-ch
		if !ok {
			return
		}
		cancel(fmt.Errorf("%w: %s", ErrSignal, s))
		if _, ok := <-ch; ok {
			os.Exit(ExitFailed)
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		close(ch)
		cancel(context.Canceled)
	}
}

// ErrSignal is the cause of a context that a signal cancelled.
var ErrSignal = errors.New("stopped by signal")
