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
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return Hint(Usage("%w", err), "%s --help", cmd.CommandPath())
	})
	markUsage(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(stderr, "%s: error: %v\n", root.Name(), err)
	for e := err; e != nil; e = errors.Unwrap(e) {
		if c, ok := e.(*Error); ok && c.Hint != "" {
			fmt.Fprintf(stderr, "%s: hint: %s\n", root.Name(), c.Hint)
		}
	}
	return Code(err)
}

// markUsage gives exit code 2 to wrong arguments, which cobra reports as plain
// errors, and makes a command that only groups others refuse unknown words.
func markUsage(cmd *cobra.Command) {
	check := cmd.Args
	cmd.Args = func(c *cobra.Command, args []string) error {
		var err error
		switch {
		case check != nil:
			err = check(c, args)
		case len(args) > 0 && c.HasSubCommands():
			err = fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
		}
		if err != nil && Code(err) == ExitFailed {
			return Hint(Usage("%w", err), "%s --help", c.CommandPath())
		}
		return err
	}
	if cmd.HasSubCommands() && cmd.RunE == nil && cmd.Run == nil {
		cmd.RunE = func(c *cobra.Command, _ []string) error {
			return errors.Join(c.Help(), Hint(Usage("a command is needed"), "%s --help", c.CommandPath()))
		}
	}
	for _, c := range cmd.Commands() {
		markUsage(c)
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
