package client

import (
	"regexp"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// Identity says who must have signed: the certificate's subject and the issuer
// that vouched for it, each as it is or as a regular expression. An expression
// must match the whole; what a subject merely contains proves nothing.
type Identity struct {
	Subject, SubjectRegexp string
	Issuer, IssuerRegexp   string
}

// Check tells whether both parts are said.
func (i Identity) Check() error {
	_, err := i.policy()
	return err
}

// policy refuses an identity that leaves either part open.
func (i Identity) policy() (verify.CertificateIdentity, error) {
	const example = "--certificate-identity alice@example.com --certificate-oidc-issuer https://sigstore.example/oidc"
	for _, c := range []struct{ plain, expr, flag string }{
		{i.Subject, i.SubjectRegexp, "--certificate-identity"},
		{i.Issuer, i.IssuerRegexp, "--certificate-oidc-issuer"},
	} {
		switch {
		case c.plain == "" && c.expr == "":
			return verify.CertificateIdentity{}, cli.Hint(cli.Usage("who must have signed is not said: %s or %s-regexp is needed", c.flag, c.flag), example)
		case c.plain != "" && c.expr != "":
			return verify.CertificateIdentity{}, cli.Usage("%s and %s-regexp cannot both be given", c.flag, c.flag)
		}
	}
	subject, err := anchor("--certificate-identity-regexp", i.SubjectRegexp)
	if err != nil {
		return verify.CertificateIdentity{}, err
	}
	issuer, err := anchor("--certificate-oidc-issuer-regexp", i.IssuerRegexp)
	if err != nil {
		return verify.CertificateIdentity{}, err
	}
	id, err := verify.NewShortCertificateIdentity(i.Issuer, issuer, i.Subject, subject)
	if err != nil {
		return verify.CertificateIdentity{}, cli.Usage("%w", err)
	}
	return id, nil
}

// anchor makes an expression match the whole. The original must be valid by
// itself, so that an unbalanced bracket cannot open the anchors.
func anchor(flag, expr string) (string, error) {
	if expr == "" {
		return "", nil
	}
	if _, err := regexp.Compile(expr); err != nil {
		return "", cli.Usage("%s: %w", flag, err)
	}
	return `^(?:` + expr + `)$`, nil
}
