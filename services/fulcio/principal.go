package fulcio

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/sigstore/fulcio/pkg/config"
	"github.com/sigstore/fulcio/pkg/identity"
	"github.com/sigstore/fulcio/pkg/identity/buildkite"
	"github.com/sigstore/fulcio/pkg/identity/chainguard"
	"github.com/sigstore/fulcio/pkg/identity/ciprovider"
	"github.com/sigstore/fulcio/pkg/identity/codefresh"
	"github.com/sigstore/fulcio/pkg/identity/email"
	"github.com/sigstore/fulcio/pkg/identity/github"
	"github.com/sigstore/fulcio/pkg/identity/gitlabcom"
	"github.com/sigstore/fulcio/pkg/identity/kubernetes"
	"github.com/sigstore/fulcio/pkg/identity/spiffe"
	"github.com/sigstore/fulcio/pkg/identity/uri"
	"github.com/sigstore/fulcio/pkg/identity/username"
)

type principalFunc func(context.Context, *oidc.IDToken) (identity.Principal, error)

// principals has every type of issuer that upstream knows. Upstream's own
// issuers are not used, because they verify through a cache that discovers over
// the network only and is bound to one global.
var principals = map[string]principalFunc{
	//lint:ignore SA1019 upstream still takes the type in its configuration
	config.IssuerTypeBuildkiteJob: buildkite.JobPrincipalFromIDToken,
	config.IssuerTypeChainguard:   chainguard.PrincipalFromIDToken,
	config.IssuerTypeCIProvider:   ciprovider.WorkflowPrincipalFromIDToken,
	//lint:ignore SA1019 upstream still takes the type in its configuration
	config.IssuerTypeCodefreshWorkflow: codefresh.WorkflowPrincipalFromIDToken,
	config.IssuerTypeEmail:             email.PrincipalFromIDToken,
	//lint:ignore SA1019 upstream still takes the type in its configuration
	config.IssuerTypeGithubWorkflow: github.WorkflowPrincipalFromIDToken,
	//lint:ignore SA1019 upstream still takes the type in its configuration
	config.IssuerTypeGitLabPipeline: gitlabcom.JobPrincipalFromIDToken,
	config.IssuerTypeKubernetes:     kubernetes.PrincipalFromIDToken,
	config.IssuerTypeSpiffe:         spiffe.PrincipalFromIDToken,
	config.IssuerTypeURI:            uri.PrincipalFromIDToken,
	config.IssuerTypeUsername:       username.PrincipalFromIDToken,
}

// vouched is a principal with the token that vouches for it.
type vouched struct {
	identity.Principal
	issuer *issuer
	token  *oidc.IDToken
	jti    string
}

// redeem uses a one-time token up.
func (v *vouched) redeem(ctx context.Context) error {
	if v.issuer.Redeem == nil {
		return nil
	}
	return v.issuer.Redeem(ctx, v.jti, v.token.Expiry)
}

// certifiedIssuer is the issuer that the certificate must name, or empty where
// the token names it in a claim of its own.
func (v *vouched) certifiedIssuer() string {
	if v.issuer.IssuerClaim != "" {
		return ""
	}
	return v.token.Issuer
}

// authenticator implements identity.Issuer for all issuers at once.
type authenticator struct {
	verifiers *verifiers
}

// Match takes every token: Authenticate says what is wrong with it.
func (a *authenticator) Match(context.Context, string) bool { return true }

// Authenticate implements identity.Issuer. The options, by which upstream lets a
// token's expiry pass, are refused.
func (a *authenticator) Authenticate(ctx context.Context, token string, opts ...config.InsecureOIDCConfigOption) (identity.Principal, error) {
	v, err := a.authenticate(ctx, token, opts...)
	if req := requestFrom(ctx); req != nil {
		req.principal, req.authErr = v, err
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (a *authenticator) authenticate(ctx context.Context, token string, opts ...config.InsecureOIDCConfigOption) (*vouched, error) {
	if len(opts) != 0 {
		return nil, errors.New("checks of the token cannot be switched off")
	}
	claimed, err := claimedIssuer(token)
	if err != nil {
		return nil, err
	}
	issuer, verifier, err := a.verifiers.find(claimed)
	if err != nil {
		return nil, err
	}
	idToken, err := verifier.verify(ctx, token)
	if err != nil {
		return nil, err
	}
	var claims struct {
		JTI string `json:"jti"`
	}
	if err := idToken.Claims(&claims); err != nil {
		return nil, fmt.Errorf("reading claims: %w", err)
	}
	if issuer.Redeem != nil && claims.JTI == "" {
		return nil, errors.New("one-time token has no jti")
	}
	p, err := issuer.principal(config.With(ctx, issuer.config), idToken)
	if err != nil {
		return nil, err
	}
	return &vouched{Principal: p, issuer: issuer, token: idToken, jti: claims.JTI}, nil
}

// claimedIssuer reads the issuer a token names, before anything of it is known
// to be true.
func claimedIssuer(token string) (string, error) {
	parts := strings.SplitN(token, ".", 4)
	if len(parts) != 3 {
		return "", errors.New("token does not have three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", errors.New("token's claims are not base64")
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", errors.New("token's claims are not JSON")
	}
	return claims.Issuer, nil
}

// authMessage is what a client is told of a token that was refused: enough to
// mend it, nothing of what the instance's network looks like.
func authMessage(err error) string {
	const prefix = "There was an error processing the identity token: "
	var expired *oidc.TokenExpiredError
	switch {
	case errors.As(err, &expired):
		return prefix + "it expired at " + expired.Expiry.UTC().Format(time.RFC3339)
	case errors.Is(err, errSignature):
		return prefix + "its signature could not be verified with its issuer's keys"
	default:
		return prefix + bounded(err.Error(), 300)
	}
}

// bounded cuts strings that came from outside.
func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
