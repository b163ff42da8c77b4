package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func doctorCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor --dir DIR",
		Short: "Look for what is wrong, and say what to do",
		Long: `Look at everything about the instance in DIR that can be looked at from
outside, whether it runs or not: configuration, folders, logs and their anchors,
keys, certificates, trust material, the clock. Nothing is changed.

Exit code 0: nothing is wrong. 3: something is. 1: something could not be told.`,
		Example: "  sigboxd doctor --dir /var/lib/sigbox",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			checks, err := appliance.Diagnose(cmd.Context(), dir)
			if err != nil {
				return explain(dir, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), checks)
			} else {
				err = printChecks(cmd.OutOrStdout(), checks)
			}
			if err != nil {
				return err
			}
			count := map[appliance.Verdict]int{}
			for _, c := range checks {
				count[c.Verdict]++
			}
			switch {
			case count[appliance.Fail] > 0:
				return cli.No("%d of %d checks failed", count[appliance.Fail], len(checks))
			case count[appliance.Unknown] > 0:
				return fmt.Errorf("%d of %d checks could not be made", count[appliance.Unknown], len(checks))
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printChecks(w io.Writer, checks []appliance.Check) error {
	for _, c := range checks {
		if _, err := fmt.Fprintf(w, "%-7s  %s: %s\n", c.Verdict, c.Name, c.Found); err != nil {
			return err
		}
		if c.Do != "" {
			if _, err := fmt.Fprintf(w, "         do: %s\n", c.Do); err != nil {
				return err
			}
		}
	}
	return nil
}
