package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func backupCommand() *cobra.Command {
	var (
		dir    string
		opts   appliance.BackupOptions
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "backup --dir DIR --out FILE",
		Short: "Write a backup, while serving or not",
		Long: `Write a backup of the instance in DIR to FILE, a tar archive with mode 0600:
both logs, the search index, the issuers' state, the audit record, the TUF
repository, certificates and configuration. All that was acknowledged before
the command began is in it. Signing goes on meanwhile.

The file is read again after it was written: checksums are compared, and the
root of each log is computed anew from its entries. FILE appears only after
that, and is never overwritten.

Keys are left out unless --with-keys asks for them. They are then encrypted
with the passphrase in --passphrase-file; the instance's own is never in a
backup. The configuration may hold secrets of connectors: guard the file.`,
		Example: `  sigboxd backup --dir /var/lib/sigbox --out /mnt/backup/sigbox-$(date +%F).tar
  sigboxd backup --dir /var/lib/sigbox --out keys-too.tar --with-keys --passphrase-file backup.pass`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.WithKeys != (opts.PassphraseFile != "") {
				return cli.Usage("--with-keys and --passphrase-file go together")
			}
			m, err := appliance.Backup(cmd.Context(), dir, opts)
			if errors.Is(err, fs.ErrExist) {
				return &cli.Error{Code: cli.ExitUsage, Err: err, Hint: "a backup never overwrites: choose another name"}
			}
			if err != nil {
				return explain(dir, err)
			}
			st, err := os.Stat(opts.Out)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), struct {
					File  string `json:"file"`
					Bytes int64  `json:"bytes"`
					appliance.Manifest
				}{opts.Out, st.Size(), m})
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "Wrote and verified %s: %d bytes, instance %s as of %s.\n", opts.Out, st.Size(), m.Instance, m.Began.Format("2006-01-02T15:04:05Z"))
			for _, l := range m.Logs {
				fmt.Fprintf(out, "  log %s: %d entries, root %s\n", l.Name, l.Size, l.Root)
			}
			_, err = fmt.Fprintf(out, "  keys: %s\n", map[bool]string{true: "yes, encrypted with the passphrase given", false: "no"}[m.WithKeys])
			return err
		},
	}
	dirFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&opts.Out, "out", "", "the file to make (required)")
	f.BoolVar(&opts.WithKeys, "with-keys", false, "put the private keys into it, encrypted")
	f.StringVar(&opts.PassphraseFile, "passphrase-file", "", "file with the passphrase that encrypts the keys")
	f.BoolVar(&asJSON, "json", false, "print the manifest as JSON")
	if err := cmd.MarkFlagRequired("out"); err != nil {
		panic(err) // defined above
	}
	return cmd
}
