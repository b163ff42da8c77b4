package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) env() *cobra.Command {
	var (
		command string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Print the environment that exec sets",
		Long: `Print the environment that "sigbox exec" sets, as lines for a POSIX shell. It is
made for the cosign that is on the PATH, or for the command that --for names.`,
		Example: `  eval "$(sigbox env)"
  sigbox env --for ./cosign-v2
  sigbox env --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			env, err := p.Environment(ctx, command)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, env)
			}
			for _, name := range slices.Sorted(maps.Keys(env.Set)) {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s\n", name, quote(env.Set[name])); err != nil {
					return err
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "unset %s\n", strings.Join(env.Unset, " "))
			return err
		},
	}
	cmd.Flags().StringVar(&command, "for", "", "command that the environment is meant for")
	cmd.Flags().BoolVar(&asJSON, "json", false, "for scripts")
	return cmd
}

// quote makes one word of a string in a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
