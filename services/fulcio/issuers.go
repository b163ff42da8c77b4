package fulcio

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/sigstore/fulcio/pkg/certificate"
	"github.com/sigstore/fulcio/pkg/config"
	"go.yaml.in/yaml/v3"

	"github.com/sigbox/sigbox/internal/pki"
)

// ErrReplayed is what Issuer.Redeem returns, or wraps, for a token that was
// redeemed before. The client is refused; any other error means that it may try
// again.
var ErrReplayed = errors.New("one-time token was used before")

// Issuer is an OIDC issuer whose tokens are taken.
type Issuer struct {
	// URL is the issuer exactly as its tokens name it. Plain http is for
	// loopback only, and for issuers of this process.
	URL string
	// Pattern stands in place of URL: each "*" in it matches one host label or
	// path segment, or a part of one. It is matched against the whole issuer.
	Pattern string
	// ClientID is the audience that tokens must name.
	ClientID string
	// Type is one of the keys of principals: it decides what of a token goes
	// into the certificate.
	Type string
	// IssuerClaim is a JSON path to the issuer to certify, for brokers. Only for
	// type email.
	IssuerClaim string
	// SubjectDomain is required of types uri (with a scheme) and username (none).
	SubjectDomain string
	// SPIFFETrustDomain is required of type spiffe.
	SPIFFETrustDomain string
	// ChallengeClaim tells clients which claim to prove possession over, where
	// it is not the type's own.
	ChallengeClaim string
	// CIProvider names an entry of Config.CIProviders; required of ci-provider.
	CIProvider string
	// SkipEmailVerification takes addresses that the issuer does not call
	// verified. Only for type email.
	SkipEmailVerification bool
	// Description and Contact are for people.
	Description, Contact string

	// CAFile holds, in PEM, the only CAs trusted for connections to the issuer.
	// Empty means those of the system.
	CAFile string
	// TokenFile holds a bearer token that is sent to the issuer's own host, as
	// a Kubernetes API server wants it. It is read anew each time.
	TokenFile string

	// Local is the handler of an issuer in this process: its keys are read from
	// it directly, without the network.
	Local http.Handler
	// Redeem makes tokens one-time: it is called with the token's jti and
	// expiry before a certificate is signed, and returns after the fact is
	// durable. A jti seen before is ErrReplayed.
	Redeem func(ctx context.Context, jti string, expiry time.Time) error
}

// CIProvider maps the claims of a CI system's tokens to a certificate, for
// issuers of type ci-provider. Its values are names of claims, or, where they
// contain "{{", templates of package text/template over the claims.
type CIProvider struct {
	// Defaults stand in for claims that a token lacks.
	Defaults map[string]string
	// Extensions maps names of Fulcio's certificate extensions
	// (build-signer-uri, source-repository-digest …) to values.
	Extensions map[string]string
	// SubjectTemplate gives the subject alternative name, a URI.
	SubjectTemplate string
}

// name is how the issuer is called in errors, logs and metrics.
func (i Issuer) name() string { return i.URL + i.Pattern }

// issuer is an Issuer that was checked.
type issuer struct {
	Issuer
	principal principalFunc
	// pattern is nil for an issuer with a URL.
	pattern *regexp.Regexp
	// config is what upstream's types look their own issuer up in: this one
	// alone, so that overlapping patterns cannot lend it another's settings.
	config *config.FulcioConfig
	base   http.RoundTripper
}

func (i *issuer) matches(url string) bool {
	if i.pattern != nil {
		return i.pattern.MatchString(url)
	}
	return url == i.URL
}

// newIssuers checks the issuers as upstream does, and in what upstream leaves
// out. It returns them as upstream's configuration too, for clients to read.
func newIssuers(list []Issuer, providers map[string]CIProvider) ([]*issuer, *config.FulcioConfig, error) {
	metadata, err := providerMetadata(providers)
	if err != nil {
		return nil, nil, err
	}
	all := &config.FulcioConfig{
		OIDCIssuers:      map[string]config.OIDCIssuer{},
		MetaIssuers:      map[string]config.OIDCIssuer{},
		CIIssuerMetadata: metadata,
	}
	var issuers []*issuer
	for _, in := range list {
		i, err := newIssuer(in, metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("issuer %q: %w", in.name(), err)
		}
		for name, up := range i.config.OIDCIssuers {
			if _, twice := all.OIDCIssuers[name]; twice {
				return nil, nil, fmt.Errorf("issuer %q is given twice", name)
			}
			all.OIDCIssuers[name] = up
		}
		for name, up := range i.config.MetaIssuers {
			if _, twice := all.MetaIssuers[name]; twice {
				return nil, nil, fmt.Errorf("issuer %q is given twice", name)
			}
			all.MetaIssuers[name] = up
		}
		issuers = append(issuers, i)
	}
	return issuers, all, nil
}

func newIssuer(in Issuer, metadata map[string]config.IssuerMetadata) (*issuer, error) {
	if (in.URL == "") == (in.Pattern == "") {
		return nil, errors.New("needs either a URL or a pattern")
	}
	if in.ClientID == "" {
		return nil, errors.New("has no client id: any audience would do")
	}
	i := &issuer{Issuer: in, principal: principals[in.Type]}
	if i.principal == nil {
		return nil, fmt.Errorf("type %q is not known", in.Type)
	}
	u, err := url.Parse(in.name())
	if err != nil {
		return nil, err
	}
	if err := checkURL(in, u); err != nil {
		return nil, err
	}
	if in.SkipEmailVerification && in.Type != config.IssuerTypeEmail {
		return nil, errors.New("only type email has verification to skip")
	}
	if in.Type == config.IssuerTypeCIProvider {
		if _, ok := metadata[in.CIProvider]; !ok {
			return nil, fmt.Errorf("ci provider %q is not configured", in.CIProvider)
		}
	} else if in.CIProvider != "" {
		return nil, errors.New("only type ci-provider has a ci provider")
	}
	upstream := config.OIDCIssuer{
		IssuerURL:             in.URL,
		ClientID:              in.ClientID,
		Type:                  config.IssuerType(in.Type),
		IssuerClaim:           in.IssuerClaim,
		SubjectDomain:         in.SubjectDomain,
		SPIFFETrustDomain:     in.SPIFFETrustDomain,
		ChallengeClaim:        in.ChallengeClaim,
		CIProvider:            in.CIProvider,
		SkipEmailVerification: in.SkipEmailVerification,
		Description:           in.Description,
		Contact:               in.Contact,
	}
	i.config = &config.FulcioConfig{CIIssuerMetadata: metadata}
	if in.Pattern == "" {
		i.config.OIDCIssuers = map[string]config.OIDCIssuer{in.URL: upstream}
	} else {
		if i.pattern, err = config.MetaRegex(in.Pattern); err != nil {
			return nil, err
		}
		i.config.MetaIssuers = map[string]config.OIDCIssuer{in.Pattern: upstream}
	}
	if err := checkAsUpstream(i.config); err != nil {
		return nil, err
	}
	if i.base, err = transport(in); err != nil {
		return nil, err
	}
	return i, nil
}

func checkURL(in Issuer, u *url.URL) error {
	switch {
	case u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return errors.New("is not an http or https URL")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return errors.New("has a user, a query or a fragment")
	case u.Scheme == "http" && in.Local == nil && !loopback(u.Hostname()):
		return errors.New("is plain http: whoever is on the way could replace its keys")
	}
	if in.Pattern == "" {
		if strings.Contains(in.URL, "*") {
			return errors.New("has a * in it: give it as a pattern")
		}
		return nil
	}
	switch labels := strings.Split(u.Hostname(), "."); {
	case in.Local != nil || in.TokenFile != "" || in.Redeem != nil:
		return errors.New("a pattern stands for issuers elsewhere, without tokens of their own")
	case !strings.Contains(in.Pattern, "*"):
		return errors.New("pattern has no *: give it as a URL")
	case len(labels) < 2 || strings.Contains(strings.Join(labels[len(labels)-2:], ""), "*") || strings.Contains(u.Port(), "*"):
		return errors.New("pattern must spell out the last two labels of the host: it would match hosts of anybody")
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// checkAsUpstream has upstream's own validation look at the configuration.
//
// Only config.Read validates, and it goes on to discover every issuer, waiting
// for each that is away. So it gets a copy whose URLs have a scheme that no
// client can dial: what it checks (hosts and domains, and that schemes agree)
// stays the same, and discovery ends before it reaches the network.
func checkAsUpstream(cfg *config.FulcioConfig) error {
	const undialable = "x-"
	check := *cfg
	check.OIDCIssuers = map[string]config.OIDCIssuer{}
	for name, i := range cfg.OIDCIssuers {
		i.IssuerURL = undialable + i.IssuerURL
		if i.Type == config.IssuerTypeURI && i.SubjectDomain != "" {
			i.SubjectDomain = undialable + i.SubjectDomain
		}
		check.OIDCIssuers[name] = i
	}
	data, err := json.Marshal(&check)
	if err != nil {
		return err
	}
	_, err = config.Read(data)
	return err
}

func providerMetadata(providers map[string]CIProvider) (map[string]config.IssuerMetadata, error) {
	out := map[string]config.IssuerMetadata{}
	for name, p := range providers {
		if strings.TrimSpace(p.SubjectTemplate) == "" {
			return nil, fmt.Errorf("ci provider %q has no subject template", name)
		}
		for _, reserved := range []string{"issuer", "subject"} {
			if _, ok := p.Extensions[reserved]; ok {
				return nil, fmt.Errorf("ci provider %q sets the extension %s, which always comes from the token", name, reserved)
			}
		}
		m := config.IssuerMetadata{
			DefaultTemplateValues:          p.Defaults,
			SubjectAlternativeNameTemplate: p.SubjectTemplate,
		}
		// By way of YAML, because the names of the extensions are upstream's tags.
		data, err := yaml.Marshal(p.Extensions)
		if err != nil {
			return nil, fmt.Errorf("ci provider %q: %w", name, err)
		}
		strict := yaml.NewDecoder(bytes.NewReader(data))
		strict.KnownFields(true)
		var ext certificate.Extensions
		if err := strict.Decode(&ext); err != nil {
			return nil, fmt.Errorf("ci provider %q: extensions: %w", name, err)
		}
		m.ExtensionTemplates = ext
		out[name] = m
	}
	if err := checkAsUpstream(&config.FulcioConfig{CIIssuerMetadata: out}); err != nil {
		return nil, fmt.Errorf("ci providers: %w", err)
	}
	return out, nil
}

func caPool(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading CA file: %w", err)
	}
	certs, err := pki.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("CA file %q: %w", file, err)
	}
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool, nil
}
