package keyless

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
)

var oidSHA256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}

// timestampRequest is TimeStampReq of RFC 3161 section 2.4.1.
type timestampRequest struct {
	Version        int
	MessageImprint messageImprint
	Nonce          *big.Int
	CertReq        bool
}

type messageImprint struct {
	HashAlgorithm pkix.AlgorithmIdentifier
	HashedMessage []byte
}

// TimestampRequest is a request in DER for a timestamp over data.
func TimestampRequest(data []byte) ([]byte, error) {
	nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	return asn1.Marshal(timestampRequest{
		Version:        1,
		MessageImprint: messageImprint{pkix.AlgorithmIdentifier{Algorithm: oidSHA256, Parameters: asn1.NullRawValue}, sum[:]},
		Nonce:          nonce,
		CertReq:        true,
	})
}

// Timestamp asks for a timestamp over data and returns the response in DER.
func (c *Client) Timestamp(ctx context.Context, data []byte) ([]byte, error) {
	body, err := TimestampRequest(data)
	if err != nil {
		return nil, err
	}
	return c.post(ctx, c.Services.TSA+"/api/v1/timestamp", "application/timestamp-query", body)
}
