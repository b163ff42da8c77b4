package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/durable"
)

func auditExportCommand() *cobra.Command {
	var (
		dir, out, since, format string
		filter                  appliance.AuditFilter
	)
	cmd := &cobra.Command{
		Use:   "export --dir DIR",
		Short: "Print the audit record, verified",
		Long: `Print the audit record of the instance in DIR on standard output, or write it
to a new file. The instance may be running.

The chain is verified on the way. If it is broken, what was printed before the
break is intact, the exit code is 3, and no file is left.

As csv, fields that have no column of their own are JSON in the last one, and a
cell that a spreadsheet would take for a formula begins with an apostrophe.`,
		Example: `  sigboxd audit export --dir /var/lib/sigbox --type issued --since 24h | jq -r .fields.san
  sigboxd audit export --dir /var/lib/sigbox --format csv --out record.csv`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter.Since, err = sinceWhen(since, time.Now()); err != nil {
				return err
			}
			for _, t := range filter.Types {
				if !slices.Contains(audit.Types, t) {
					return cli.Usage("type %q is none of %s", t, strings.Join(audit.Types, ", "))
				}
			}
			if format != "jsonl" && format != "csv" {
				return cli.Usage("format %q is neither jsonl nor csv", format)
			}
			if out == "" {
				return explain(dir, appliance.ExportAudit(cmd.Context(), dir, filter, format == "csv", cmd.OutOrStdout()))
			}
			f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return cli.Hint(cli.Usage("%s exists, and is not overwritten", out), "choose another --out, or remove it")
			} else if err != nil {
				return err
			}
			err = appliance.ExportAudit(cmd.Context(), dir, filter, format == "csv", f)
			if err == nil {
				err = f.Sync()
			}
			if err = errors.Join(err, f.Close()); err == nil {
				return durable.SyncDir(filepath.Dir(out))
			}
			if rerr := os.Remove(out); rerr != nil {
				err = fmt.Errorf("%w; %s is incomplete: %w", err, out, rerr)
			}
			return explain(dir, err)
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().StringVar(&out, "out", "", "write to this file, which must not exist")
	cmd.Flags().StringVar(&since, "since", "", "only records from a time (2006-01-02T15:04:05Z, 2006-01-02) or an age (24h) on")
	cmd.Flags().StringSliceVar(&filter.Types, "type", nil, "only records of these types: "+strings.Join(audit.Types, ", "))
	cmd.Flags().StringVar(&format, "format", "jsonl", "jsonl or csv")
	return cmd
}

// sinceWhen reads a time, a date or an age.
func sinceWhen(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if age, err := time.ParseDuration(text); err == nil && age >= 0 {
		return now.Add(-age), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	return time.Time{}, cli.Usage("--since %q is neither a time such as 2006-01-02T15:04:05Z, nor a date, nor an age such as 24h", text)
}
