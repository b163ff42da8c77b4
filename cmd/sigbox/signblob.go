package main

import (
	"fmt"
	"io"
	"os"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/spf13/cobra"
)

func (a *app) signBlob() *cobra.Command {
	var (
		token  tokenFlags
		bundle string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "sign-blob FILE --bundle OUT",
		Short: "Sign a file",
		Long: `Sign a file, or standard input with "-", in the name of an identity token's
holder. The bundle holds the signature and all that proves it: certificate,
timestamp, log entry. It is verified before it is written.`,
		Example: `  sigbox sign-blob release.tar.gz --bundle release.sigstore.json
  sigbox sign-blob release.tar.gz --bundle release.sigstore.json --identity-token "$(sigboxd token --dir DIR --subject ci@example.com)"
  tar c . | sigbox sign-blob - --bundle tree.sigstore.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if bundle == "" {
				return cli.Hint(cli.Usage("--bundle is needed: it names the file that the signature goes to"), "sigbox sign-blob %s --bundle %s.sigstore.json", args[0], args[0])
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			artifact, err := openArtifact(cmd, args[0])
			if err != nil {
				return err
			}
			defer artifact.Close()
			signer, err := token.signer(ctx, a, cmd)
			if err != nil {
				return err
			}
			signed, err := signer.SignBlob(ctx, artifact)
			if err != nil {
				return err
			}
			if err := durable.WriteFile(bundle, append(signed.Bundle, '\n'), 0o644); err != nil {
				return fmt.Errorf("writing the bundle: %w", err)
			}
			if asJSON {
				return printJSON(cmd, struct {
					*client.Signed
					Bundle string `json:"bundle"`
				}{signed, bundle})
			}
			return say(cmd, "%s: %s; bundle: %s", args[0], describe(&signed.Verified), bundle)
		},
	}
	token.add(cmd)
	cmd.Flags().StringVar(&bundle, "bundle", "", "file that the signature goes to")
	cmd.Flags().BoolVar(&asJSON, "json", false, "describe the signature on standard output")
	_ = cmd.MarkFlagFilename("bundle", "json")
	return cmd
}

// openArtifact opens a file, or standard input for "-".
func openArtifact(cmd *cobra.Command, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(cmd.InOrStdin()), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the artifact: %w", err)
	}
	if info, err := f.Stat(); err != nil || info.IsDir() {
		_ = f.Close()
		return nil, fmt.Errorf("reading the artifact: %s is a folder", path)
	}
	return f, nil
}
