package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
)

func upgradeCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "upgrade --dir DIR",
		Short: "Bring a database to this program's schema",
		Long: `Bring the PostgreSQL database of the instance in DIR to the schema of this
sigboxd, in one transaction. Stop every replica before. It is never done by
serve, and there is no way back but a backup.`,
		Example: "  sigboxd upgrade --dir /var/lib/sigbox",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := appliance.Upgrade(cmd.Context(), dir); err != nil {
				return explain(dir, err)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "The database has this program's schema.")
			return err
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}
