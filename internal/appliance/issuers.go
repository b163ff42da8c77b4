package appliance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sigbox/sigbox/services/fulcio"
	"github.com/sigbox/sigbox/services/issuer"
)

// audience is what every token for Fulcio is made for.
const audience = "sigstore"

// fulcioIssuers are the instance's own two issuers and those configured.
func (a *Appliance) fulcioIssuers(people http.Handler) []fulcio.Issuer {
	list := []fulcio.Issuer{{URL: a.cfg.URL + ciPath, ClientID: audience, Type: "email", Local: a.ci.Handler(), Redeem: a.redeem}}
	if people != nil {
		list = append(list, fulcio.Issuer{URL: a.cfg.URL + peoplePath, ClientID: audience, Type: "email", Local: people})
	}
	for _, i := range a.cfg.Fulcio.Issuers {
		list = append(list, fulcio.Issuer{
			URL: i.URL, Pattern: i.Pattern, ClientID: i.ClientID, Type: i.Type, IssuerClaim: i.IssuerClaim,
			SubjectDomain: i.SubjectDomain, SPIFFETrustDomain: i.SPIFFETrustDomain, ChallengeClaim: i.ChallengeClaim,
			CIProvider: i.CIProvider, SkipEmailVerification: i.SkipEmailVerification, CAFile: a.cfg.Path(i.CAFile),
			TokenFile: a.cfg.Path(i.TokenFile),
			Contact:   i.Contact, Description: i.Description,
		})
	}
	return list
}

func (a *Appliance) ciProviders() map[string]fulcio.CIProvider {
	m := map[string]fulcio.CIProvider{}
	for name, p := range a.cfg.Fulcio.CIProviders {
		m[name] = fulcio.CIProvider{Defaults: p.Defaults, Extensions: p.Extensions, SubjectTemplate: p.SubjectTemplate}
	}
	return m
}

// redeem speaks Fulcio's errors for the issuer's.
func (a *Appliance) redeem(ctx context.Context, jti string, expiry time.Time) error {
	err := a.ci.Redeem(ctx, jti, expiry)
	if errors.Is(err, issuer.ErrReplayed) {
		return fmt.Errorf("%w: %w", fulcio.ErrReplayed, err)
	}
	return err
}

// openPeople starts the issuer for people. It is nil where nobody could sign
// in.
func (a *Appliance) openPeople(ctx context.Context) (http.Handler, error) {
	if len(a.cfg.People.Users) == 0 && len(a.cfg.People.Connectors) == 0 {
		return nil, nil
	}
	people, err := issuer.NewPeople(ctx, a.peopleConfig())
	if err != nil {
		return nil, fmt.Errorf("opening the issuer for people: %w", err)
	}
	a.people = people
	return people.Handler(), a.services.start("issuer", people)
}

func (a *Appliance) peopleConfig() issuer.PeopleConfig {
	cfg := issuer.PeopleConfig{
		URL: a.cfg.URL + peoplePath, Dir: a.issuer(), Postgres: a.db.Pool(), Grants: a.cfg.People.Grants, Logger: a.named("issuer"),
	}
	if a.cfg.TLS.Terminated {
		cfg.RemoteIP = clientAddress
	}
	for _, u := range a.cfg.People.Users {
		cfg.Users = append(cfg.Users, issuer.User{Email: u.Email, Username: u.Username, ID: u.ID, PasswordHash: u.PasswordHash})
	}
	for _, c := range a.cfg.People.Connectors {
		cfg.Connectors = append(cfg.Connectors, issuer.Connector{Type: c.Type, ID: c.ID, Name: c.Name, Config: c.Config})
	}
	return cfg
}

// clientAddress is who sent a request, for limits by address. Behind a proxy
// that ends TLS it is what the proxy, and nobody before it, put last.
func clientAddress(r *http.Request) string {
	if via := r.Header.Values("X-Forwarded-For"); len(via) > 0 {
		hops := strings.Split(via[len(via)-1], ",")
		return strings.TrimSpace(hops[len(hops)-1])
	}
	return r.RemoteAddr
}

// HashPassword makes the hash of a local user's password for the configuration.
func HashPassword(password []byte) (string, error) { return issuer.HashPassword(password) }

// hostname is Rekor's name in its checkpoints: the origin's host and port.
func hostname(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return origin // Config has checked it
	}
	return u.Host
}
