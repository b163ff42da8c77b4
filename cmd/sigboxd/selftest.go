package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/internal/appliance"
)

// selfTest signs and verifies a blob as any client would: over HTTP, from
// nothing but the pinned root.
func selfTest(ctx context.Context, dir, url, rootChecksum string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	home, err := os.MkdirTemp("", "sigbox-selftest-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(home)) }()
	profile, err := client.Home{Dir: home}.Init(ctx, client.InitOptions{URL: url, RootChecksum: rootChecksum})
	if err != nil {
		return fmt.Errorf("fetching trust: %w", err)
	}
	minted, err := appliance.AskToken(ctx, dir, appliance.TokenRequest{Subject: "self-test@sigbox.internal"})
	if err != nil {
		return err
	}
	token, err := client.NewToken(minted.Token)
	if err != nil {
		return err
	}
	signer, err := profile.Signer(ctx, token)
	if err != nil {
		return err
	}
	blob := []byte("sigbox self-test\n")
	signed, err := signer.SignBlob(ctx, bytes.NewReader(blob))
	if err != nil {
		return fmt.Errorf("signing: %w", err)
	}
	b, err := client.ParseBundle(signed.Bundle)
	if err != nil {
		return err
	}
	trust, err := profile.Trust(ctx)
	if err != nil {
		return fmt.Errorf("reading trust: %w", err)
	}
	_, err = trust.VerifyBlob(bytes.NewReader(blob), b, client.Identity{Subject: minted.Identity, Issuer: url + "/ci"})
	if err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	return nil
}
