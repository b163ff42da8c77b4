package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
)

func auditAdoptCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "adopt --dir DIR",
		Short: "Go on with an audit record that is damaged",
		Long: `Let the instance in DIR, which must be stopped, issue certificates again although
its audit record is damaged at its end, or lines are missing there. Keep a copy
of the folder first, and put the record back from a backup if there is one that
is newer: this is for when there is not.

Nothing of the record is changed. A new file is begun whose first line says what
is wrong, and audit verify goes on naming it.`,
		Example: "  sigboxd audit adopt --dir /var/lib/sigbox",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			damage, err := appliance.AdoptAudit(dir)
			if err != nil {
				return explain(dir, err)
			}
			if damage == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "the record can be continued as it is")
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "put on record: %v\n", damage)
			}
			return err
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}
