package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) login() *cobra.Command {
	var token tokenFlags
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Log in and print an identity token",
		Long: `Log in at the instance's issuer and print the identity token on standard output.
The address and the code to confirm are printed on standard error. The token
lives for a few minutes and signs in your name: do not keep it.`,
		Example: `  SIGSTORE_ID_TOKEN=$(sigbox login) sigbox sign-blob FILE --bundle FILE.sigstore.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			// A person needs longer than a service.
			t, err := token.login(cmd.Context(), p, cmd)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), t.Reveal())
			return err
		},
	}
	cmd.Flags().StringVar(&token.clientID, "oidc-client-id", "sigstore", "OAuth client to log in with")
	return cmd
}
