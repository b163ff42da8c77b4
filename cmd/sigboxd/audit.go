package main

import "github.com/spf13/cobra"

func auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Read, check or continue the audit record",
		Long: `The audit record lists every certificate, every refusal and every log entry,
each line chained to the one before.`,
	}
	cmd.AddCommand(auditExportCommand(), auditVerifyCommand(), auditAdoptCommand())
	return cmd
}
