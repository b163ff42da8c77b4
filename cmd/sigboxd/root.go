package main

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/logging"
	"github.com/sigbox/sigbox/internal/postgres"
	"github.com/sigbox/sigbox/internal/state"
)

func root() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sigboxd",
		Short: "A private Sigstore in one process",
		Long: `sigboxd runs a private Sigstore: a Fulcio certificate authority, a Rekor
transparency log, a certificate transparency log, a timestamp authority, OIDC
issuers and a TUF repository, all on one port and in one folder.`,
		Example: `  sigboxd quickstart
  sigboxd init --dir /var/lib/sigbox --url https://sigbox.example.com --listen :443 --tls-cert tls.crt --tls-key tls.key
  sigboxd serve --dir /var/lib/sigbox`,
	}
	cmd.PersistentFlags().String("log-level", "info", "what to log: debug, info, warn or error")
	cmd.AddCommand(quickstartCommand(), initCommand(), serveCommand(), statusCommand(), doctorCommand(), tokenCommand(), upgradeCommand(), verifyLogsCommand(),
		anchorCommand(), auditCommand(), backupCommand(), restoreCommand(), hashPasswordCommand(), versionCommand())
	return cmd
}

// logger writes to standard error as --log-level says.
func logger(cmd *cobra.Command) (*slog.Logger, error) {
	level, err := cmd.Flags().GetString("log-level")
	if err != nil {
		return nil, err
	}
	l, err := logging.New(cmd.ErrOrStderr(), level)
	if err != nil {
		return nil, cli.Usage("%w", err)
	}
	return l, nil
}

// dirFlag is --dir, which nearly every command needs.
func dirFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "dir", "", "the instance's folder (required)")
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err) // the line above defines it
	}
	if err := cmd.MarkFlagDirname("dir"); err != nil {
		panic(err)
	}
}

// explain gives errors about an instance their exit code and their hint.
func explain(dir string, err error) error {
	usage := func(hint string) error {
		return &cli.Error{Code: cli.ExitUsage, Err: err, Hint: hint}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, state.ErrMissing):
		return usage("sigboxd init --dir " + dir + " --url URL")
	case errors.Is(err, state.ErrHalfMade):
		return usage("if nothing in it is wanted: rm -r " + dir + ", then sigboxd init --dir " + dir + " --url URL")
	case errors.Is(err, state.ErrExists):
		return usage("sigboxd serve --dir " + dir + " serves an instance that is there; a new one needs an empty folder")
	case errors.Is(err, state.ErrNewer):
		return usage("use the sigboxd that wrote it, or a newer one; going back is not possible")
	case errors.Is(err, audit.ErrMissing):
		return cli.Hint(err, "put the folder back from a backup; the record is never made anew")
	case errors.Is(err, audit.ErrDamaged):
		return &cli.Error{Code: cli.ExitNo, Err: err, Hint: "sigboxd audit verify --dir " + dir + " tells all that is wrong; then see docs/operations.md"}
	case errors.Is(err, state.ErrLocked):
		return cli.Hint(err, "sigboxd status --dir %s shows the one that runs", dir)
	case errors.Is(err, appliance.ErrInUse):
		return cli.Hint(err, "is a copy of this instance running, perhaps from another folder? one of the two must never be started again")
	case errors.Is(err, appliance.ErrNotLocal):
		return usage("storage.dir and storage.anchor_dir in sigbox.yaml must be on a local file system")
	case errors.Is(err, appliance.ErrOlderRoot):
		return &cli.Error{Code: cli.ExitNo, Err: err, Hint: "the anchor can be read and has a newer root: put the newer files of the log back"}
	case errors.Is(err, postgres.ErrEmpty):
		return usage("sigboxd init --dir DIR --config sigbox.yaml makes an instance, in an empty folder DIR and in the database")
	case errors.Is(err, postgres.ErrExists):
		return usage("sigboxd serve --dir DIR serves it, from a folder DIR with its sigbox.yaml, keys/, certs/ and anchor/; a new one needs a database without a schema " + postgres.Schema)
	case errors.Is(err, appliance.ErrHalfMade):
		return usage("if nothing in it is wanted: psql -c 'DROP SCHEMA " + postgres.Schema + " CASCADE', then sigboxd init")
	case errors.Is(err, postgres.ErrOlder):
		return usage("stop every replica, then sigboxd upgrade --dir " + dir)
	case errors.Is(err, postgres.ErrNewer):
		return usage("use the sigboxd that wrote it, or a newer one; going back is not possible")
	case errors.Is(err, postgres.ErrUnsafe):
		return usage("see docs/operations.md, PostgreSQL")
	case errors.Is(err, appliance.ErrNotOnDatabase):
		return usage("see docs/operations.md, PostgreSQL")
	case errors.Is(err, appliance.ErrRequest):
		return usage("sigboxd token --help")
	case errors.Is(err, appliance.ErrNoLog):
		return usage("the logs are ctlog and rekor")
	case errors.Is(err, appliance.ErrConfig):
		return usage("see docs/configuration.md")
	case errors.Is(err, appliance.ErrSuperseded), errors.Is(err, appliance.ErrStillRuns):
		return cli.Hint(err, "see Clones in docs/operations.md")
	case errors.Is(err, appliance.ErrListen):
		return cli.Hint(err, "is something else using the address? choose another with listen in sigbox.yaml")
	}
	return err
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}
