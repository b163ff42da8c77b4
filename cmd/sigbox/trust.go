package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/tuf"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/spf13/cobra"
)

func (a *app) trust() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Pin an instance and see what it vouches for",
		Example: `  sigbox trust init --url https://sigstore.example --root-checksum SHA256
  sigbox trust show`,
	}
	cmd.AddCommand(a.trustInit(), a.trustShow(), a.trustUpdate(), a.trustExport())
	return cmd
}

func (a *app) trustInit() *cobra.Command {
	var (
		o            client.InitOptions
		rootFile, ca string
	)
	cmd := &cobra.Command{
		Use:   "init --url URL (--root FILE | --root-checksum SHA256)",
		Short: "Pin an instance",
		Long: `Pin an instance by its first TUF root and make it the default.

The root, or its SHA-256, must come from somebody trusted, not from the network:
whoever stands in between could put their own root in its place. "sigboxd status"
on the instance's machine, and "sigboxd quickstart" when it starts, print the
checksum.`,
		Example: `  sigbox trust init --url http://127.0.0.1:8080 --root-checksum SHA256
  sigbox trust init --url https://sigstore.example --root 1.root.json --ca-file ca.pem`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.limit(cmd)
			defer cancel()
			for _, f := range []struct {
				path, flag string
				into       *[]byte
			}{{rootFile, "--root", &o.Root}, {ca, "--ca-file", &o.CA}} {
				if f.path == "" {
					continue
				}
				data, err := os.ReadFile(f.path)
				if err != nil {
					return cli.Usage("%s: %w", f.flag, err)
				}
				*f.into = data
			}
			home, err := client.FindHome()
			if err != nil {
				return err
			}
			// The variable names the profile to work with, not one to be made.
			if cmd.Flags().Changed("profile") {
				o.Name = a.profile
			}
			p, err := home.Init(ctx, o)
			if err != nil {
				return err
			}
			return say(cmd, "Pinned %s as %q, now the default.\nTUF root: sha256 %s", p.URL, p.Name, p.RootSHA256)
		},
	}
	cmd.Flags().StringVar(&o.URL, "url", "", "the instance: scheme, host and port")
	cmd.Flags().StringVar(&rootFile, "root", "", "the first TUF root (1.root.json), carried here by other means")
	cmd.Flags().StringVar(&o.RootChecksum, "root-checksum", "", "SHA-256 of the first TUF root, in hexadecimal")
	cmd.Flags().StringVar(&ca, "ca-file", "", "certificates (PEM) that vouch for the instance's TLS, besides the system's; kept with the profile")
	cmd.Flags().BoolVar(&o.Replace, "replace", false, "replace a profile that pins another root")
	_ = cmd.MarkFlagFilename("root", "json")
	_ = cmd.MarkFlagFilename("ca-file", "pem", "crt")
	return cmd
}

func (a *app) trustUpdate() *cobra.Command {
	return &cobra.Command{
		Use:   "update",
		Short: "Ask the instance what it vouches for now",
		Long: `Ask the pinned instance what it vouches for now. This happens by itself when what
is kept here has expired, and before each signature.`,
		Example: "  sigbox trust update",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.limit(cmd)
			defer cancel()
			p, err := a.open()
			if err != nil {
				return err
			}
			t, err := p.Refresh(ctx)
			if err != nil {
				return err
			}
			return say(cmd, "Trust of %s is up to date; %s expires first, at %s", p.URL, t.Expiries[0].Role, t.Expiries[0].Expires.Format(time.RFC3339))
		},
	}
}

func (a *app) trustExport() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "export --out FILE",
		Short: "Write trusted_root.json for hosts that only verify",
		Long: `Write the trusted_root.json that the pinned instance vouches for. With it
"sigbox verify-blob --trusted-root", and cosign's flag of that name, verify
without network.`,
		Example: "  sigbox trust export --out trusted_root.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return cli.Hint(cli.Usage("--out is needed: it names the file to write"), "sigbox trust export --out trusted_root.json")
			}
			ctx, cancel := a.limit(cmd)
			defer cancel()
			p, err := a.open()
			if err != nil {
				return err
			}
			t, err := p.Trust(ctx)
			if err != nil {
				return err
			}
			if err := durable.WriteFile(out, t.TrustedRoot, 0o644); err != nil {
				return err
			}
			return say(cmd, "Wrote what %s vouches for to %s", p.URL, out)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "file to write")
	return cmd
}

// shownTrust is the answer of trust show --json.
type shownTrust struct {
	Profile    string           `json:"profile"`
	Profiles   []string         `json:"profiles"`
	URL        string           `json:"url"`
	RootSHA256 string           `json:"root_sha256"`
	Pinned     time.Time        `json:"pinned"`
	Dir        string           `json:"dir"`
	Expiries   []tuf.Expiry     `json:"expiries"`
	Endpoints  client.Endpoints `json:"endpoints"`
	Keys       []shownKey       `json:"keys"`
}

type shownKey struct {
	Kind  string     `json:"kind"` // fulcio, tsa, rekor, ctlog
	Name  string     `json:"name"` // a certificate's subject, a log's URL
	ID    string     `json:"id"`   // SHA-256 of the root certificate or of the log's key
	Start time.Time  `json:"start"`
	End   *time.Time `json:"end,omitempty"`
}

func (a *app) trustShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the pinned instance and what it vouches for",
		Example: `  sigbox trust show
  sigbox trust show --json | jq -r .root_sha256`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := a.limit(cmd)
			defer cancel()
			home, err := client.FindHome()
			if err != nil {
				return err
			}
			p, err := home.Open(a.profile)
			if err != nil {
				return err
			}
			t, err := p.Trust(ctx)
			if err != nil {
				return err
			}
			endpoints, err := t.Endpoints()
			if err != nil {
				return err
			}
			names, err := home.Names()
			if err != nil {
				return err
			}
			s := shownTrust{
				Profile: p.Name, Profiles: names, URL: p.URL, RootSHA256: p.RootSHA256, Pinned: p.Pinned, Dir: p.Dir(),
				Expiries: t.Expiries, Endpoints: endpoints, Keys: keysOf(t.Material),
			}
			if asJSON {
				return printJSON(cmd, s)
			}
			return s.print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for scripts")
	return cmd
}

func keysOf(m root.TrustedMaterial) []shownKey {
	keys := []shownKey{}
	add := func(kind, name, id string, start, end time.Time) {
		k := shownKey{Kind: kind, Name: name, ID: id, Start: start.UTC()}
		if !end.IsZero() {
			end = end.UTC()
			k.End = &end
		}
		keys = append(keys, k)
	}
	for _, c := range m.FulcioCertificateAuthorities() {
		if f, ok := c.(*root.FulcioCertificateAuthority); ok {
			add("fulcio", f.Root.Subject.String(), fmt.Sprintf("%x", sha256.Sum256(f.Root.Raw)), f.ValidityPeriodStart, f.ValidityPeriodEnd)
		}
	}
	for _, c := range m.TimestampingAuthorities() {
		if f, ok := c.(*root.SigstoreTimestampingAuthority); ok {
			add("tsa", f.Root.Subject.String(), fmt.Sprintf("%x", sha256.Sum256(f.Root.Raw)), f.ValidityPeriodStart, f.ValidityPeriodEnd)
		}
	}
	for kind, logs := range map[string]map[string]*root.TransparencyLog{"rekor": m.RekorLogs(), "ctlog": m.CTLogs()} {
		for id, l := range logs {
			add(kind, l.BaseURL, id, l.ValidityPeriodStart, l.ValidityPeriodEnd)
		}
	}
	slices.SortStableFunc(keys, func(a, b shownKey) int {
		if a.Kind != b.Kind {
			return slices.Index(kinds, a.Kind) - slices.Index(kinds, b.Kind)
		}
		return a.Start.Compare(b.Start)
	})
	return keys
}

var kinds = []string{"fulcio", "ctlog", "rekor", "tsa"}

func (s *shownTrust) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "profile\t%s\ninstance\t%s\nroot sha256\t%s\npinned\t%s\nfolder\t%s\n", s.Profile, s.URL, s.RootSHA256, s.Pinned.Format(time.RFC3339), s.Dir)
	for _, e := range s.Expiries {
		fmt.Fprintf(w, "TUF %s\tversion %d, expires %s\n", e.Role, e.Version, e.Expires.Format(time.RFC3339))
	}
	for _, e := range []struct{ name, url string }{
		{"fulcio", s.Endpoints.Fulcio}, {"rekor", s.Endpoints.Rekor}, {"tsa", s.Endpoints.TSA}, {"oidc issuer", s.Endpoints.OIDC},
	} {
		if e.url != "" {
			fmt.Fprintf(w, "%s at\t%s\n", e.name, e.url)
		}
	}
	for _, k := range s.Keys {
		until := "in use"
		if k.End != nil {
			until = "until " + k.End.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s key\t%s  %s  since %s, %s\n", k.Kind, k.ID[:16], k.Name, k.Start.Format(time.RFC3339), until)
	}
	return w.Flush()
}
