package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/config"
)

func initCommand() *cobra.Command {
	var (
		dir, file, passphrase string
		cfg                   config.Config
		terminated            bool
	)
	cmd := &cobra.Command{
		Use:   "init --dir DIR --url URL",
		Short: "Make a new instance",
		Long: `Make a new instance in DIR: configuration, keys, certificates, empty logs and
the TUF repository. DIR must be empty or missing; nothing is ever overwritten.

The keys in DIR/offline are not needed to serve. Take them off the machine.`,
		Example: `  sigboxd init --dir /var/lib/sigbox --url https://sigbox.example.com --listen :443 --tls-cert /etc/sigbox/tls.crt --tls-key /etc/sigbox/tls.key
  sigboxd init --dir /var/lib/sigbox --config sigbox.yaml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(cmd)
			if err != nil {
				return err
			}
			var data []byte
			if file != "" {
				if data, err = readConfig(cmd, file); err != nil {
					return err
				}
			} else {
				if cfg.URL == "" {
					return cli.Hint(cli.Usage("--url is needed: the origin that clients will use"), "sigboxd init --dir %s --url https://sigbox.example.com", dir)
				}
				cfg.TLS.Terminated = terminated
				for _, p := range []*string{&cfg.TLS.CertFile, &cfg.TLS.KeyFile, &passphrase} {
					if *p == "" {
						continue
					}
					// The file is read from the instance's folder later.
					if *p, err = filepath.Abs(*p); err != nil {
						return err
					}
				}
				cfg.Keys.PassphraseFile = passphrase
				if data, err = cfg.Marshal(); err != nil {
					return err
				}
			}
			made, err := appliance.Init(cmd.Context(), dir, data, time.Now(), log)
			if err != nil {
				return explain(dir, err)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Made instance %s for %s in %s.\n\n", made.ID, made.URL, dir)
			fmt.Fprintf(out, "TUF root SHA-256, for clients to pin:\n  %s\n\n", made.RootSHA256)
			fmt.Fprintf(out, "Keys to take off this machine, with their passphrase:\n  %s\n\n", filepath.Join(dir, appliance.OfflineDir))
			_, err = fmt.Fprintf(out, "Next:\n  sigboxd serve --dir %s\n", dir)
			return err
		},
	}
	dirFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&cfg.URL, "url", "", "the one public origin, such as https://sigbox.example.com")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "address to serve on, HOST:PORT")
	f.StringVar(&cfg.TLS.CertFile, "tls-cert", "", "TLS certificate chain in PEM")
	f.StringVar(&cfg.TLS.KeyFile, "tls-key", "", "TLS private key in PEM")
	f.BoolVar(&terminated, "tls-terminated", false, "a proxy in front ends TLS")
	f.StringVar(&cfg.Operator, "operator", "", "organisation named in the CA certificates")
	f.StringVar(&cfg.Metrics, "metrics", "", "address for Prometheus, HOST:PORT")
	f.StringVar(&passphrase, "passphrase-file", "", "file with the passphrase of the keys (default: DIR/keys/passphrase, made if missing)")
	f.StringVar(&file, "config", "", "a configuration file to use instead of these flags; - for standard input")
	for _, name := range []string{"url", "listen", "tls-cert", "tls-key", "tls-terminated", "operator", "metrics", "passphrase-file"} {
		cmd.MarkFlagsMutuallyExclusive("config", name)
	}
	return cmd
}

func readConfig(cmd *cobra.Command, file string) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(io.LimitReader(cmd.InOrStdin(), 1<<20))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, cli.Usage("reading configuration: %w", err)
	}
	return bytes.TrimPrefix(data, []byte("\ufeff")), nil
}
