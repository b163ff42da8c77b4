package appliance

import (
	"net/http"
	"net/url"

	"github.com/sigbox/sigbox/services/fulcio"
	"github.com/sigbox/sigbox/services/issuer"
)

// audience is what every token for Fulcio is made for.
const audience = "sigstore"

// fulcioIssuers are the instance's own two issuers and those configured.
func (a *Appliance) fulcioIssuers(people http.Handler) []fulcio.Issuer {
	list := []fulcio.Issuer{
		{URL: a.cfg.URL + peoplePath, ClientID: audience, Type: "email", Local: people},
		{URL: a.cfg.URL + ciPath, ClientID: audience, Type: "email", Local: a.ci.Handler(), Redeem: a.ci.Redeem},
	}
	for _, i := range a.cfg.Fulcio.Issuers {
		list = append(list, fulcio.Issuer{
			URL: i.URL, Pattern: i.Pattern, ClientID: i.ClientID, Type: i.Type, IssuerClaim: i.IssuerClaim,
			SubjectDomain: i.SubjectDomain, SPIFFETrustDomain: i.SPIFFETrustDomain, ChallengeClaim: i.ChallengeClaim,
			CIProvider: i.CIProvider, SkipEmailVerification: i.SkipEmailVerification, CAFile: a.cfg.Path(i.CAFile),
			Contact: i.Contact, Description: i.Description,
		})
	}
	return list
}

func (a *Appliance) peopleConfig() issuer.PeopleConfig {
	cfg := issuer.PeopleConfig{
		URL: a.cfg.URL + peoplePath, Dir: a.issuer(), Grants: a.cfg.People.Grants, Logger: a.named("issuer"),
	}
	for _, u := range a.cfg.People.Users {
		cfg.Users = append(cfg.Users, issuer.User{Email: u.Email, Username: u.Username, ID: u.ID, PasswordHash: u.PasswordHash})
	}
	return cfg
}

// hostname is Rekor's name in its checkpoints: the origin's host and port.
func hostname(origin string) string {
	u, err := url.Parse(origin)
	if err != nil {
		return origin // Config has checked it
	}
	return u.Host
}
