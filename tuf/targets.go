package tuf

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"time"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// Targets lists every file that clients read: trusted_root.json and
// signing_config.v0.2.json for current ones, and for older ones (cosign v2 and
// what is built on sigstore/sigstore) each key and certificate on its own, with
// the "sigstore" custom metadata by which they find it. Now decides which of
// them are marked as expired.
func (m *TrustMaterial) Targets(now time.Time) ([]Target, error) {
	trustedRoot, err := m.TrustedRoot()
	if err != nil {
		return nil, err
	}
	signingConfig, err := m.SigningConfig()
	if err != nil {
		return nil, err
	}
	b := legacy{now: now}
	for i, a := range m.Fulcio {
		top := len(a.Chain) - 1
		b.certs(fmt.Sprintf("fulcio_v%d.crt.pem", i+1), "Fulcio", a.URL, a.End, a.Chain[top:])
		b.certs(fmt.Sprintf("fulcio_intermediate_v%d.crt.pem", i+1), "Fulcio", a.URL, a.End, a.Chain[:top])
	}
	for i, l := range m.Rekor {
		b.key(numbered("rekor", i), "Rekor", l)
	}
	for i, l := range m.CTLogs {
		b.key(numbered("ctfe", i), "CTFE", l)
	}
	// Older clients take every target marked TSA, whatever its status, and give
	// up when there are two signing certificates among them: only the newest
	// authority can be shown to them.
	if n := len(m.TSAs); n > 0 {
		a := m.TSAs[n-1]
		top := len(a.Chain) - 1
		if top > 0 {
			b.certs("tsa_leaf.crt.pem", "TSA", a.URL, a.End, a.Chain[:1])
			for i, c := range a.Chain[1:top] {
				b.certs(fmt.Sprintf("tsa_intermediate_%d.crt.pem", i), "TSA", a.URL, a.End, []*x509.Certificate{c})
			}
		}
		b.certs("tsa_root.crt.pem", "TSA", a.URL, a.End, a.Chain[top:])
	}
	if b.err != nil {
		return nil, b.err
	}
	return append([]Target{
		{Name: TrustedRootName, Data: trustedRoot},
		{Name: SigningConfigName, Data: signingConfig},
	}, b.targets...), nil
}

// numbered names the first one as clients have always called it, and the ones
// that followed by number.
func numbered(base string, i int) string {
	if i == 0 {
		return base + ".pub"
	}
	return fmt.Sprintf("%s_%d.pub", base, i+1)
}

// legacy gathers the targets of older clients.
type legacy struct {
	now     time.Time
	targets []Target
	err     error
}

func (b *legacy) certs(name, usage, uri string, end time.Time, certs []*x509.Certificate) {
	if b.err != nil || len(certs) == 0 {
		return
	}
	data, err := cryptoutils.MarshalCertificatesToPEM(certs)
	b.add(name, usage, uri, end, data, err)
}

func (b *legacy) key(name, usage string, l Log) {
	if b.err != nil {
		return
	}
	data, err := cryptoutils.MarshalPublicKeyToPEM(l.PublicKey)
	b.add(name, usage, l.URL, l.End, data, err)
}

func (b *legacy) add(name, usage, uri string, end time.Time, data []byte, err error) {
	if err != nil {
		b.err = fmt.Errorf("target %s: %w", name, err)
		return
	}
	type sigstore struct {
		Usage  string `json:"usage"`
		Status string `json:"status"`
		URI    string `json:"uri"`
	}
	status := "Active"
	if !end.IsZero() && !b.now.Before(end) {
		status = "Expired"
	}
	custom, err := json.Marshal(map[string]sigstore{"sigstore": {usage, status, uri}})
	if err != nil {
		b.err = fmt.Errorf("target %s: %w", name, err)
		return
	}
	b.targets = append(b.targets, Target{Name: name, Data: data, Custom: custom})
}
