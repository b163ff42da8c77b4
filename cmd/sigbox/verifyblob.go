package main

import (
	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/spf13/cobra"
)

func (a *app) verifyBlob() *cobra.Command {
	var (
		identity identityFlags
		bundle   string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "verify-blob FILE --bundle BUNDLE --certificate-identity NAME --certificate-oidc-issuer URL",
		Short: "Verify a file's signature",
		Long: `Verify that somebody signed a file, or standard input with "-". Who, and which
issuer vouched for them, must be said.

Nothing is fetched, unless what the pinned instance vouches for has expired here.
With --trusted-root neither network nor home folder is needed.`,
		Example: `  sigbox verify-blob release.tar.gz --bundle release.sigstore.json \
    --certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc
  sigbox verify-blob release.tar.gz --bundle release.sigstore.json --trusted-root trusted_root.json \
    --certificate-identity-regexp '.*@example\.com' --certificate-oidc-issuer https://sigstore.example/oidc`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if bundle == "" {
				return cli.Hint(cli.Usage("--bundle is needed: it names the file that holds the signature"), "sigbox verify-blob --help")
			}
			if err := identity.Check(); err != nil {
				return err
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			b, err := client.ReadBundle(bundle)
			if err != nil {
				return err
			}
			artifact, err := openArtifact(cmd, args[0])
			if err != nil {
				return err
			}
			defer artifact.Close()
			trust, err := identity.trust(ctx, a)
			if err != nil {
				return err
			}
			v, err := trust.VerifyBlob(artifact, b, identity.Identity)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, v)
			}
			return say(cmd, "Verified OK: %s %s", args[0], describe(v))
		},
	}
	identity.add(cmd)
	cmd.Flags().StringVar(&bundle, "bundle", "", "file that holds the signature")
	cmd.Flags().BoolVar(&asJSON, "json", false, "describe the signature on standard output")
	_ = cmd.MarkFlagFilename("bundle", "json")
	return cmd
}
