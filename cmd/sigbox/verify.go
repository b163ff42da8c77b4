package main

import "github.com/spf13/cobra"

func (a *app) verify() *cobra.Command {
	var (
		identity identityFlags
		registry registryFlags
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "verify IMAGE --certificate-identity NAME --certificate-oidc-issuer URL",
		Short: "Verify a container image's signature",
		Long: `Verify that somebody signed a container image. Who, and which issuer vouched for
them, must be said. Signatures that sigbox or cosign v3 made are found; one that
holds is enough.

Given a tag, it says which digest it verified: use that digest from then on,
since the tag can change. Only the registry is asked, unless what the pinned
instance vouches for has expired here.`,
		Example: `  sigbox verify registry.example/app@sha256:… \
    --certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc
  sigbox verify registry.example/app:v1 --json --trusted-root trusted_root.json \
    --certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := identity.Check(); err != nil {
				return err
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			reg, err := registry.registry()
			if err != nil {
				return err
			}
			trust, err := identity.trust(ctx, a)
			if err != nil {
				return err
			}
			v, err := trust.VerifyImage(ctx, args[0], identity.Identity, reg)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, v)
			}
			return say(cmd, "Verified OK: %s %s", v.Image, describe(&v.Verified))
		},
	}
	identity.add(cmd)
	registry.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "describe the signature on standard output")
	return cmd
}
