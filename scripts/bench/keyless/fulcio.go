package keyless

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
)

type credentials struct {
	Token string `json:"oidcIdentityToken"`
}

type signingCertRequest struct {
	Credentials credentials `json:"credentials"`
	CSR         []byte      `json:"certificateSigningRequest"`
}

type signingCertResponse struct {
	Embedded struct {
		Chain struct {
			Certificates []string `json:"certificates"`
		} `json:"chain"`
	} `json:"signedCertificateEmbeddedSct"`
}

// Certificate asks Fulcio for a certificate over the key, with its SCT
// embedded, and returns the leaf in DER. A signing request proves possession of
// the key whatever the token's type.
func (c *Client) Certificate(ctx context.Context, token string, key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(signingCertRequest{
		Credentials: credentials{token},
		CSR:         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}),
	})
	if err != nil {
		return nil, err
	}
	data, err := c.post(ctx, c.Services.Fulcio+"/api/v2/signingCert", "application/json", body)
	if err != nil {
		return nil, err
	}
	var answer signingCertResponse
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	if len(answer.Embedded.Chain.Certificates) == 0 {
		return nil, errors.New("no certificate with an embedded SCT in the answer")
	}
	block, _ := pem.Decode([]byte(answer.Embedded.Chain.Certificates[0]))
	if block == nil {
		return nil, errors.New("the certificate is not in PEM")
	}
	return block.Bytes, nil
}
