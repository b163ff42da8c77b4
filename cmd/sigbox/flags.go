package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// identityFlags say who must have signed. The names are cosign's.
type identityFlags struct {
	client.Identity
	trustedRoot string
}

func (f *identityFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.Subject, "certificate-identity", "", "who must have signed: the certificate's subject, such as alice@example.com")
	cmd.Flags().StringVar(&f.SubjectRegexp, "certificate-identity-regexp", "", "the same as a regular expression, which must match the whole subject")
	cmd.Flags().StringVar(&f.Issuer, "certificate-oidc-issuer", "", "the issuer that must have vouched for the signer")
	cmd.Flags().StringVar(&f.IssuerRegexp, "certificate-oidc-issuer-regexp", "", "the same as a regular expression, which must match the whole issuer")
	cmd.Flags().StringVar(&f.trustedRoot, "trusted-root", "", "trusted_root.json to trust instead of a pinned instance; needs neither network nor home folder")
	_ = cmd.MarkFlagFilename("trusted-root", "json")
}

// trust is the trusted root that was given, else the pinned instance's.
func (f *identityFlags) trust(ctx context.Context, a *app) (*client.Trust, error) {
	if f.trustedRoot != "" {
		return client.ReadTrustedRoot(f.trustedRoot)
	}
	p, err := a.open()
	if err != nil {
		return nil, err
	}
	return p.Trust(ctx)
}

// tokenFlags say in whose name to sign. The names are cosign's.
type tokenFlags struct {
	identityToken string
	clientID      string
	yes           bool
}

func (f *tokenFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.identityToken, "identity-token", "", "identity token, or a file that holds it (default: SIGSTORE_ID_TOKEN, the file in SIGSTORE_ID_TOKEN_FILE, or a login in the terminal)")
	cmd.Flags().StringVar(&f.clientID, "oidc-client-id", client.DefaultClientID, "OAuth client to log in with")
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "accepted because cosign has it; nothing is asked")
}

// signer finds the token, by a login where nothing else gives one.
func (f *tokenFlags) signer(ctx context.Context, a *app, cmd *cobra.Command) (*client.Signer, error) {
	p, err := a.open()
	if err != nil {
		return nil, err
	}
	token, ok, err := client.FindToken(f.identityToken)
	if err != nil {
		return nil, err
	}
	if !ok {
		if err, ok := cmd.ErrOrStderr().(*os.File); !ok || !term.IsTerminal(int(err.Fd())) {
			return nil, cli.Hint(cli.Usage("there is no identity token, and no terminal to log in with"),
				"give --identity-token or SIGSTORE_ID_TOKEN, e.g. from `sigboxd token --dir DIR --subject NAME`, or run `sigbox login`")
		}
		if token, err = f.login(ctx, p, cmd); err != nil {
			return nil, err
		}
	}
	return p.Signer(ctx, token)
}

func (f *tokenFlags) login(ctx context.Context, p *client.Profile, cmd *cobra.Command) (client.Token, error) {
	trust, err := p.Trust(ctx)
	if err != nil {
		return client.Token{}, err
	}
	endpoints, err := trust.Endpoints()
	if err != nil {
		return client.Token{}, err
	}
	if endpoints.OIDC == "" {
		return client.Token{}, cli.Hint(errors.New("the instance has no issuer that people could log in at"), "give --identity-token")
	}
	return p.Login(ctx, endpoints.OIDC, f.clientID, cmd.ErrOrStderr())
}

// registryFlags say how a registry is reached. The names are cosign's.
type registryFlags struct {
	http, insecure bool
	ca             string
}

func (f *registryFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.http, "allow-http-registry", false, "allow a registry without TLS (one on this machine needs no leave)")
	cmd.Flags().BoolVar(&f.insecure, "allow-insecure-registry", false, "the same; certificates are verified all the same")
	cmd.Flags().StringVar(&f.ca, "registry-cacert", "", "certificates (PEM) that vouch for the registry's TLS, besides the system's")
	_ = cmd.MarkFlagFilename("registry-cacert", "pem", "crt")
}

func (f *registryFlags) registry() (client.Registry, error) {
	r := client.Registry{PlainHTTP: f.http || f.insecure}
	if f.ca != "" {
		ca, err := os.ReadFile(f.ca)
		if err != nil {
			return r, cli.Usage("--registry-cacert: %w", err)
		}
		r.CA = ca
	}
	return r, nil
}

// describe is a verified signature in one line.
func describe(v *client.Verified) string {
	s := fmt.Sprintf("signed by %s (issuer %s)", v.Subject, v.Issuer)
	if len(v.Times) > 0 {
		s += " at " + v.Times[0].Time.Format("2006-01-02 15:04:05Z")
	}
	for _, e := range v.LogEntries {
		s += fmt.Sprintf(", log index %d", e.Index)
	}
	return s
}
