package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func statusCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status --dir DIR",
		Short: "Tell whether an instance runs and would sign",
		Long: `Tell whether the instance in DIR runs and whether a signature would succeed.
Exit code 0: it would. 3: it would not, and why.`,
		Example: "  sigboxd status --dir /var/lib/sigbox --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := appliance.AskStatus(cmd.Context(), dir)
			if err != nil {
				return explain(dir, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), st)
			} else {
				err = printStatus(cmd.OutOrStdout(), st)
			}
			switch {
			case err != nil:
				return err
			case !st.Running:
				return cli.Hint(cli.No("the instance is not running"), "sigboxd serve --dir %s", dir)
			case !st.Ready:
				return cli.No("the instance is not ready to sign")
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, st appliance.Status) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(k, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", k, fmt.Sprintf(format, args...))
	}
	line("url", "%s", st.URL)
	line("instance", "%s", st.ID)
	line("root sha256", "%s", st.RootSHA256)
	if st.Running {
		line("running", "yes, as process %d since %s (%s)", st.PID, st.Started.Format(time.RFC3339), st.Version)
	} else {
		line("running", "no")
	}
	if st.Epoch > 0 {
		line("epoch", "%d (times restored)", st.Epoch)
	}
	if a := st.Archive; a != nil {
		line("archive", "%s: %d entries of ctlog, %d of rekor", a.Dir, a.Sizes["ctlog"], a.Sizes["rekor"])
		if a.Error != "" {
			line("archive", "it does not follow: %s", a.Error)
		}
	}
	line("ready to sign", "%s", map[bool]string{true: "yes", false: "no"}[st.Ready])
	for _, p := range st.Problems {
		line("problem", "%s: %s", p.Part, p.Reason)
	}
	for _, l := range st.Logs {
		line("log "+l.Name, "%d entries, root %s", l.Size, l.Root)
		if l.Frozen != nil {
			line("frozen "+l.Name, "%s", l.Frozen.Reason)
		}
		line("anchor "+l.Name, "%d entries, root %s", l.Anchor.Size, l.Anchor.Root)
		if s := l.Scrub; s != nil {
			done := "no pass completed yet"
			if s.Passes > 0 {
				done = fmt.Sprintf("%d passes, the last of %d entries at %s", s.Passes, s.CompletedSize, s.Completed.Format(time.RFC3339))
			}
			line("scrub "+l.Name, "%d of %d entries; %s", s.Leaves, s.Size, done)
		}
	}
	for _, i := range st.Issuers {
		line("issuer", "%s", i)
	}
	for _, e := range st.Expiries {
		line("expires", "%s  %s (in %d days)", e.Expires.Format(time.RFC3339), e.What, int(time.Until(e.Expires).Hours()/24))
	}
	return tw.Flush()
}
