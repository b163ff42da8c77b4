package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func verifyLogsCommand() *cobra.Command {
	var (
		dir    string
		opts   appliance.VerifyOptions
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "verify-logs --dir DIR",
		Short: "Compute the logs anew from their entries",
		Long: `Compute the transparency logs of the instance in DIR anew, from the values of
all their entries, and compare everything that is stored with the outcome: leaf
hashes, tree nodes, the index that finds entries by hash, the root, the anchor.

If the instance runs, its process does it beside its work, and a log that is
found damaged is frozen. If it does not, the files are read and not written to.

Exit code 0: all is as it was written. 3: it is not, and what is not.`,
		Example: `  sigboxd verify-logs --dir /var/lib/sigbox
  sigboxd verify-logs --dir /var/lib/sigbox --log rekor --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			progress, finish := progressLine(cmd.ErrOrStderr())
			opts.Progress = progress
			reports, err := appliance.VerifyLogs(cmd.Context(), dir, opts)
			finish()
			if err != nil {
				return explain(dir, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), reports)
			} else {
				err = printReports(cmd.OutOrStdout(), reports)
			}
			if err != nil {
				return err
			}
			for _, r := range reports {
				if !r.Sound() {
					return cli.Hint(cli.No("log %s is not sound", r.Name), "sigboxd doctor --dir %s", dir)
				}
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringArrayVar(&opts.Logs, "log", nil, "ctlog or rekor (default: both)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printReports(w io.Writer, reports []appliance.LogReport) error {
	for _, r := range reports {
		verdict := "sound"
		if !r.Sound() {
			verdict = "NOT SOUND"
		}
		fmt.Fprintf(w, "%s: %s: %d entries, root %s (%d MiB in %v)\n", r.Name, verdict, r.Size, r.Root, r.Bytes>>20, r.Took.Round(time.Millisecond))
		if r.Frozen != nil {
			fmt.Fprintf(w, "  frozen: %s\n", r.Frozen.Reason)
		}
		for _, f := range r.Findings {
			fmt.Fprintf(w, "  found: %v\n", f)
		}
		if _, err := fmt.Fprintf(w, "  anchor %s: %d entries, root %s\n", r.Anchor.File, r.Anchor.Size, r.Anchor.Root); err != nil {
			return err
		}
	}
	return nil
}

// progressLine shows progress on one line of a terminal, and nothing elsewhere.
func progressLine(w io.Writer) (progress func(log string, done, size uint64), finish func()) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	shown := false
	progress = func(log string, done, size uint64) {
		shown = true
		fmt.Fprintf(w, "\r\x1b[K%s: %d of %d entries (%d %%)", log, done, size, done*100/max(size, 1))
	}
	return progress, func() {
		if shown {
			fmt.Fprint(w, "\r\x1b[K")
		}
	}
}
