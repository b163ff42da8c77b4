package main

import (
	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
)

func serveCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "serve --dir DIR",
		Short: "Serve an instance that init made",
		Long: `Serve the instance in DIR until SIGTERM or SIGINT: requests under way are
finished first. A second signal ends the process at once.`,
		Example: "  sigboxd serve --dir /var/lib/sigbox",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd)
			if err != nil {
				return err
			}
			a, err := appliance.Open(cmd.Context(), dir, log)
			if err != nil {
				return explain(dir, err)
			}
			if a.Config().Quickstart {
				log.Warn("this is a quickstart instance: every key is on this machine; make one with sigboxd init for production")
			}
			return a.Run(cmd.Context())
		},
	}
	dirFlag(cmd, &dir)
	return cmd
}
