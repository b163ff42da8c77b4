package main

import (
	"fmt"

	"github.com/sigbox/sigbox/internal/version"
	"github.com/spf13/cobra"
)

func (a *app) version() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print which build this is",
		Example: "  sigbox version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd, version.Get())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "sigbox", version.Get())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for scripts")
	return cmd
}
