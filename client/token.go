package client

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"golang.org/x/oauth2"
)

// DefaultClientID is the OAuth client that people sign in with, the name that
// every Sigstore client uses.
const DefaultClientID = "sigstore"

const maxToken = 64 << 10

// Token is an OIDC identity token. It never prints itself.
type Token struct{ raw string }

// NewToken checks that a string has the form of a token (RFC 7519) and has not
// expired. Whether it is genuine is for the certificate authority to say.
func NewToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	parts := strings.Split(s, ".")
	if len(s) > maxToken || len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return Token{}, cli.Usage("the identity token is not a JSON web token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return Token{}, cli.Usage("the identity token is not a JSON web token: %w", err)
	}
	var claims struct {
		Issuer  string  `json:"iss"`
		Expires float64 `json:"exp"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return Token{}, cli.Usage("the identity token is not a JSON web token: %w", err)
	}
	if end := time.Unix(int64(claims.Expires), 0); claims.Expires > 0 && time.Now().After(end) {
		return Token{}, cli.Hint(fmt.Errorf("the identity token of %s expired at %s", claims.Issuer, end.Format(time.RFC3339)),
			"get a new one, e.g. sigboxd token --dir DIR --subject NAME")
	}
	return Token{s}, nil
}

// Reveal is the token itself.
func (t Token) Reveal() string { return t.raw }

func (t Token) String() string       { return "[identity token]" }
func (t Token) GoString() string     { return t.String() }
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// FindToken takes the identity token from the flag's value (the token, or the
// path of a file that holds it), else from SIGSTORE_ID_TOKEN, else from the file
// that SIGSTORE_ID_TOKEN_FILE names. ok is false when there is none.
func FindToken(flag string) (token Token, ok bool, err error) {
	read := func(path string) (Token, bool, error) {
		data, err := readFile(path, maxToken)
		if err != nil {
			return Token{}, false, cli.Usage("reading the identity token: %w", err)
		}
		t, err := NewToken(string(data))
		return t, err == nil, err
	}
	if flag != "" {
		if info, err := os.Stat(flag); err == nil && info.Mode().IsRegular() {
			return read(flag)
		}
		t, err := NewToken(flag)
		if err != nil && strings.Count(flag, ".") != 2 {
			// A path that does not exist is the likelier meaning.
			err = cli.Usage("--identity-token %q is neither a file nor a JSON web token", flag)
		}
		return t, err == nil, err
	}
	if s := os.Getenv("SIGSTORE_ID_TOKEN"); s != "" {
		t, err := NewToken(s)
		return t, err == nil, err
	}
	if path := os.Getenv("SIGSTORE_ID_TOKEN_FILE"); path != "" {
		return read(path)
	}
	return Token{}, false, nil
}

// Login signs a person in with the device flow (RFC 8628, with PKCE): it prints
// an address and a code on out and waits until they were used.
func (p *Profile) Login(ctx context.Context, issuer, clientID string, out io.Writer) (Token, error) {
	t, err := p.transport(ctx)
	if err != nil {
		return Token{}, err
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, t.client())
	endpoint, err := t.discover(issuer)
	if err != nil {
		return Token{}, fmt.Errorf("asking the issuer %s: %w", issuer, err)
	}
	cfg := oauth2.Config{ClientID: clientID, Endpoint: endpoint, Scopes: []string{"openid", "email"}}
	verifier := oauth2.GenerateVerifier()
	// Dex binds the code to the challenge of the first request.
	device, err := cfg.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
	if err != nil {
		return Token{}, fmt.Errorf("starting the login at %s: %w", issuer, err)
	}
	address := device.VerificationURIComplete
	if address == "" {
		address = device.VerificationURI
	}
	if _, err := fmt.Fprintf(out, "Open %s in a browser and confirm the code %s\n", printable(address), printable(device.UserCode)); err != nil {
		return Token{}, err
	}
	answer, err := cfg.DeviceAccessToken(ctx, device, oauth2.VerifierOption(verifier))
	if err != nil {
		return Token{}, fmt.Errorf("waiting for the login at %s: %w", issuer, err)
	}
	raw, ok := answer.Extra("id_token").(string)
	if !ok {
		return Token{}, fmt.Errorf("the issuer %s answered without an identity token", issuer)
	}
	return NewToken(raw)
}

// printable keeps what a server says from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}

// discover reads the issuer's configuration (OpenID Connect Discovery 1.0, §4)
// and takes only endpoints on the issuer's own host, so that it cannot send the
// login elsewhere.
func (t *transport) discover(issuer string) (oauth2.Endpoint, error) {
	data, err := t.get(strings.TrimRight(issuer, "/")+"/.well-known/openid-configuration", 1<<20)
	if err != nil {
		return oauth2.Endpoint{}, err
	}
	var doc struct {
		Issuer string `json:"issuer"`
		Token  string `json:"token_endpoint"`
		Device string `json:"device_authorization_endpoint"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return oauth2.Endpoint{}, err
	}
	if doc.Issuer != issuer {
		return oauth2.Endpoint{}, fmt.Errorf("it calls itself %q", doc.Issuer)
	}
	if doc.Device == "" {
		return oauth2.Endpoint{}, errors.New("it offers no login in the terminal (device flow)")
	}
	home, err := url.Parse(issuer)
	if err != nil {
		return oauth2.Endpoint{}, err
	}
	for _, s := range []string{doc.Token, doc.Device} {
		u, err := url.Parse(s)
		if err != nil {
			return oauth2.Endpoint{}, err
		}
		if u.Scheme != home.Scheme || u.Host != home.Host {
			return oauth2.Endpoint{}, fmt.Errorf("it names an endpoint on another host: %q", s)
		}
	}
	return oauth2.Endpoint{TokenURL: doc.Token, DeviceAuthURL: doc.Device, AuthStyle: oauth2.AuthStyleInParams}, nil
}
