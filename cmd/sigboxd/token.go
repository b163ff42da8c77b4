package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
)

func tokenCommand() *cobra.Command {
	var (
		dir    string
		req    appliance.TokenRequest
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "token --dir DIR --subject NAME",
		Short: "Print a one-time token for a job",
		Long: `Print one OIDC token of the instance's /ci issuer on standard output. It buys
one certificate and is then spent.

The certificate's identity is the subject if that is an e-mail address, and
SUBJECT@ci.internal otherwise; verify with that identity and the issuer URL/ci.`,
		Example: `  sigboxd token --dir /var/lib/sigbox --subject build/main
  cosign sign --identity-token "$(sigboxd token --dir /var/lib/sigbox --subject ci@example.com)" IMAGE@DIGEST`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := appliance.AskToken(cmd.Context(), dir, req)
			if err != nil {
				return explain(dir, err)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), answer)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), answer.Token)
			return err
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringVar(&req.Subject, "subject", "", "who the job is: an e-mail address or a name such as build/main (required)")
	cmd.Flags().StringVar(&req.TTL, "ttl", "", "lifetime, such as 10m (default: the instance's ci.default_ttl)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with the identity that the certificate will carry")
	if err := cmd.MarkFlagRequired("subject"); err != nil {
		panic(err) // defined above
	}
	return cmd
}
