package main

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func anchorCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "anchor",
		Short: "See to the anchors of the logs",
		Long: `An anchor is the newest published root of a log, kept outside of the databases.
A log whose storage does not agree with its anchor is not signed for.`,
	}
	cmd.AddCommand(anchorAdoptCommand())
	return cmd
}

func anchorAdoptCommand() *cobra.Command {
	var (
		dir, log, root string
		size           uint64
	)
	cmd := &cobra.Command{
		Use:   "adopt --dir DIR --log ctlog|rekor --size N --root HEX",
		Short: "Make an anchor for a log that has lost its own",
		Long: `Make an anchor for a log whose anchor is lost or damaged. Size and root are those
of the newest tree head that anybody was shown, from somewhere else than the
databases: a monitor, a client's bundle, a saved checkpoint. The entries in the
databases, all of which are computed anew, must reproduce that root.

What the databases themselves say is no proof that they are not an older copy. An
anchor that can be read is never replaced by an older root. The instance must
not run.

Exit code 3: the databases do not have that root.`,
		Example: "  sigboxd anchor adopt --dir /var/lib/sigbox --log rekor --size 41 --root 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hash, err := hex.DecodeString(root)
			if err != nil || len(hash) != 32 {
				return cli.Usage("--root is not a hash of 64 hexadecimal digits")
			}
			progress, finish := progressLine(cmd.ErrOrStderr())
			err = appliance.AdoptAnchor(cmd.Context(), dir, log, size, hash, progress)
			finish()
			switch {
			case errors.Is(err, appliance.ErrNotReproduced):
				return cli.Hint(cli.No("%w", err), "sigboxd verify-logs --dir %s --log %s shows what the databases have", dir, log)
			case err != nil:
				return explain(dir, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Log %s is anchored at %d entries, root %s.\n\nNext:\n  sigboxd serve --dir %s\n", log, size, root, dir)
			return err
		},
	}
	dirFlag(cmd, &dir)
	f := cmd.Flags()
	f.StringVar(&log, "log", "", "ctlog or rekor (required)")
	f.Uint64Var(&size, "size", 0, "entries of the newest tree head that anybody was shown (required)")
	f.StringVar(&root, "root", "", "its root hash in hexadecimal (required)")
	for _, name := range []string{"log", "size", "root"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // defined above
		}
	}
	return cmd
}
