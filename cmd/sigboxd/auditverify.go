package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sigbox/sigbox/internal/appliance"
	"github.com/sigbox/sigbox/internal/cli"
)

func auditVerifyCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "verify --dir DIR",
		Short: "Check the audit record, and that it names the certificates in the log",
		Long: `Verify the chain of the whole audit record of the instance in DIR, and that the
certificates in it and those in the certificate transparency log are the same.
The logs are read through the running instance, or from storage where none
runs; their entries must hash to their tree head.

A certificate that was announced in the record and logged, but never issued, is
no difference: the process died in between, or the client had gone. It is
listed.

Exit code 0: the record is whole and the sets are the same. 3: they are not, and
how. 1: it could not be told.`,
		Example: "  sigboxd audit verify --dir /var/lib/sigbox --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := appliance.VerifyAudit(cmd.Context(), dir)
			if err != nil {
				return explain(dir, err)
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = printAudit(cmd.OutOrStdout(), report)
			}
			switch {
			case err != nil:
				return err
			case len(report.Damage) > 0:
				return cli.No("the audit record is damaged")
			case !report.Same:
				return cli.No("the audit record and the logs differ")
			case report.Pending.Count > 0:
				return cli.Hint(fmt.Errorf("%d certificates are not in the log yet", report.Pending.Count), "serve the instance, and verify again")
			}
			return nil
		},
	}
	dirFlag(cmd, &dir)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printAudit(w io.Writer, r appliance.AuditReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(k, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", k, fmt.Sprintf(format, args...))
	}
	line("record", "%d lines in %d files, to line %d, SHA-256 %s", r.Trail.Records, r.Trail.Segments, r.Trail.Head.Seq, r.Trail.Head.Sum)
	if r.Trail.Torn > 0 {
		line("", "%d bytes behind it are of a write under way, or cut short", r.Trail.Torn)
	}
	line("certificates", "%d on record, %d precertificates in the log", r.Issued, r.Logged)
	if r.Submitted > 0 {
		line("", "%d certificates in the log besides, sent there after issuance", r.Submitted)
	}
	line("refusals", "%d", r.Refused)
	line("entries", "%d in the signature log, %d on record, %d never acknowledged", r.Entries.Size, r.Entries.Recorded, r.Entries.Unrecorded)
	for _, d := range r.Damage {
		line("damage", "%s", d)
	}
	list := func(k string, f appliance.AuditFindings) {
		for _, d := range f.List {
			at := ""
			if d.Serial != "" {
				at += " serial " + d.Serial
			}
			if d.Entry >= 0 {
				at += fmt.Sprintf(" entry %d", d.Entry)
			}
			if d.Seq > 0 {
				at += fmt.Sprintf(" line %d", d.Seq)
			}
			line(k, "%s:%s", d.What, at)
		}
		if more := f.Count - uint64(len(f.List)); more > 0 {
			line(k, "and %d more", more)
		}
	}
	list("never issued", r.NeverIssued)
	list("pending", r.Pending)
	list("difference", r.Differences)
	line("same", "%s", map[bool]string{true: "yes", false: "no"}[r.Same])
	return tw.Flush()
}
