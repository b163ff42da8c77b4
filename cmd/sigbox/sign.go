package main

import (
	"fmt"

	"github.com/sigbox/sigbox/internal/durable"
	"github.com/spf13/cobra"
)

func (a *app) sign() *cobra.Command {
	var (
		token    tokenFlags
		registry registryFlags
		bundle   string
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "sign IMAGE@DIGEST",
		Short: "Sign a container image",
		Long: `Sign a container image, or anything else in an OCI registry, by its digest. The
signature is attached to the image as cosign v3 does it, so that cosign verifies
it too. A tag is refused, since it can change while it is signed.`,
		Example: `  sigbox sign registry.example/app@sha256:…
  sigbox sign --identity-token "$(sigboxd token --dir DIR --subject ci@example.com)" registry.example/app@sha256:…`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := a.limit(cmd)
			defer cancel()
			reg, err := registry.registry()
			if err != nil {
				return err
			}
			signer, err := token.signer(ctx, a, cmd)
			if err != nil {
				return err
			}
			signed, err := signer.SignImage(ctx, args[0], reg)
			if err != nil {
				return err
			}
			if bundle != "" {
				if err := durable.WriteFile(bundle, append(signed.Bundle, '\n'), 0o644); err != nil {
					return fmt.Errorf("writing the bundle: %w", err)
				}
			}
			if asJSON {
				return printJSON(cmd, signed)
			}
			return say(cmd, "%s: %s; signature: %s", signed.Image, describe(&signed.Verified), signed.Reference)
		},
	}
	token.add(cmd)
	registry.add(cmd)
	cmd.Flags().StringVar(&bundle, "bundle", "", "file that the signature goes to as well")
	cmd.Flags().BoolVar(&asJSON, "json", false, "describe the signature on standard output")
	return cmd
}
