package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/version"
)

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Say which build this is",
		Example: "  sigboxd version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), version.Get())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "sigboxd", version.Get())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
