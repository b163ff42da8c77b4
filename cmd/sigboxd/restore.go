package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/state"
)

func restoreCommand() *cobra.Command {
	var (
		dir    string
		opts   appliance.RestoreOptions
		adopt  []string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "restore --from FILE --dir DIR",
		Short: "Make an instance from a backup, never a second history",
		Long: `Make an instance in DIR, which must be empty or missing, from a backup. All of
the backup is verified before anything is written.

A log goes on with its own key only if its entries, those of the backup and
those of the archive (storage.archive_dir) after them, make the very root that
was published last. The anchor says which that is: --anchor names the folder of
the one that has survived. Where it has not, --adopt states the root, as a
monitor or a client that saw it last knows it.

A log that does not come to that root is restored frozen: it can be read, and
nothing is signed for it. Exit code 0: the instance may be served. 3: a log is
frozen, and what it lacks.`,
		Example: `  sigboxd restore --from backup.tar --dir /var/lib/sigbox --anchor /mnt/anchor --archive /mnt/archive
  sigboxd restore --from backup.tar --dir /var/lib/sigbox --adopt rekor=41:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 --adopt ctlog=40:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if opts.Adopt, err = parseAdopted(adopt); err != nil {
				return err
			}
			done, err := appliance.Restore(cmd.Context(), dir, opts)
			switch {
			case errors.Is(err, state.ErrExists):
				return &cli.Error{Code: cli.ExitUsage, Err: err, Hint: "a backup is restored into a folder that is empty or missing, and so are storage.dir and the audit record's"}
			case errors.Is(err, appliance.ErrWrongInstance):
				return cli.Hint(err, "backup, archive and anchor have to be of one instance: the id stands in each")
			case err != nil:
				return explain(dir, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), done)
			} else {
				err = printRestored(cmd.OutOrStdout(), dir, done)
			}
			if err != nil {
				return err
			}
			if !done.Frozen() {
				return nil
			}
			return frozenHint(dir, done)
		},
	}
	dirFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&opts.From, "from", "", "the backup (required)")
	f.StringVar(&opts.Archive, "archive", "", "the folder of the archive, if it has survived")
	f.StringVar(&opts.Anchor, "anchor", "", "the folder of the anchors, if it has survived (default: where the configuration says)")
	f.StringArrayVar(&adopt, "adopt", nil, "LOG=SIZE:ROOT, the last published root of a log whose anchor is lost; may be repeated")
	f.StringVar(&opts.PassphraseFile, "passphrase-file", "", "file with the passphrase of the keys in the backup; without it they are not restored")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	if err := cmd.MarkFlagRequired("from"); err != nil {
		panic(err) // defined above
	}
	return cmd
}

func parseAdopted(flags []string) (map[string]appliance.AdoptedRoot, error) {
	adopted := map[string]appliance.AdoptedRoot{}
	for _, s := range flags {
		name, rest, _ := strings.Cut(s, "=")
		size, root, _ := strings.Cut(rest, ":")
		n, err := strconv.ParseUint(size, 10, 63)
		hash, err2 := hex.DecodeString(root)
		if err != nil || err2 != nil || len(hash) != 32 {
			return nil, cli.Usage("--adopt %q is not LOG=SIZE:ROOT, with the root in hexadecimal", s)
		}
		if _, twice := adopted[name]; twice {
			return nil, cli.Usage("--adopt names %s twice", name)
		}
		adopted[name] = appliance.AdoptedRoot{Size: n, Root: hash}
	}
	return adopted, nil
}

func printRestored(w io.Writer, dir string, done appliance.Restored) error {
	fmt.Fprintf(w, "Restored instance %s for %s in %s (epoch %d).\n", done.Instance, done.URL, dir, done.Epoch)
	for _, l := range done.Logs {
		fmt.Fprintf(w, "\nlog %s: %d entries, root %s\n", l.Name, l.Size, l.Root)
		fmt.Fprintf(w, "  in the backup: %d; replayed from the archive: %d\n", l.Backup, l.Size-min(l.Size, l.Backup))
		if l.PublishedRoot != "" {
			fmt.Fprintf(w, "  published last: %d entries, root %s\n", l.PublishedSize, l.PublishedRoot)
		}
		if l.Frozen == "" {
			fmt.Fprintf(w, "  it goes on\n")
			continue
		}
		fmt.Fprintf(w, "  FROZEN: %s\n", l.Frozen)
		if l.Missing > 0 {
			fmt.Fprintf(w, "  missing: %d entries, from %d to %d\n", l.Missing, l.Size, l.PublishedSize-1)
		}
	}
	fmt.Fprintf(w, "\nsearch index: %d rows", done.IndexRows)
	if done.Dropped > 0 {
		fmt.Fprintf(w, "; %d more led to entries that are not there, and were left out", done.Dropped)
	}
	fmt.Fprintf(w, "\n\nNext:\n")
	if !done.Keys {
		fmt.Fprintf(w, "  put the keys and their passphrase in %s\n", filepath.Join(dir, "keys"))
	}
	_, err := fmt.Fprintf(w, "  make sure that the instance that this was made from does not run any more, nowhere\n  sigboxd serve --dir %s\n", dir)
	return err
}

func frozenHint(dir string, done appliance.Restored) error {
	for _, l := range done.Logs {
		switch {
		case l.Frozen == "":
		case l.PublishedRoot == "":
			return cli.Hint(cli.No("log %s is frozen: %s", l.Name, l.Frozen),
				"ask a monitor for the last checkpoint, then: sigboxd anchor adopt --dir %s --log %s --size N --root HEX", dir, l.Name)
		case l.Missing > 0:
			return cli.Hint(cli.No("log %s is frozen: %d published entries are missing", l.Name, l.Missing),
				"look for a newer backup, or an archive that goes further, and restore again into another folder; if there is none, see docs/operations.md, When entries are lost")
		default:
			return cli.Hint(cli.No("log %s is frozen: %s", l.Name, l.Frozen), "this backup is of another history than the one that was published: do not serve it; look for another backup")
		}
	}
	return nil
}
