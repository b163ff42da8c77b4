package tsa

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the digests that requests may have
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/digitorus/timestamp"
	"github.com/sigstore/timestamp-authority/v2/pkg/verification"
)

// jsonRequest is the form of a request that upstream takes besides DER.
type jsonRequest struct {
	ArtifactHash  []byte   `json:"artifactHash"`
	Certificates  bool     `json:"certificates"`
	HashAlgorithm string   `json:"hashAlgorithm"`
	Nonce         *big.Int `json:"nonce"`
	TSAPolicyOID  string   `json:"tsaPolicyOID"`
}

var jsonHashes = map[string]crypto.Hash{
	"sha256": crypto.SHA256,
	"sha384": crypto.SHA384,
	"sha512": crypto.SHA512,
}

// parse reads a request and refuses what this authority does not stamp: weak
// digests, digests of the wrong length, other policies, and extensions.
func parse(media string, body []byte) (*timestamp.Request, error) {
	var req *timestamp.Request
	var err error
	if media == typeJSON {
		req, err = parseJSON(body)
	} else {
		req, err = timestamp.ParseRequest(body)
	}
	if err != nil {
		return nil, fmt.Errorf("timestamp request cannot be read: %w", err)
	}
	if err := verification.VerifyRequest(req); err != nil {
		return nil, err
	}
	if len(req.TSAPolicyOID) != 0 && !req.TSAPolicyOID.Equal(policy) {
		return nil, verification.ErrUnacceptedPolicy
	}
	if len(req.Extensions) != 0 {
		return nil, verification.ErrUnacceptedExtension
	}
	return req, nil
}

func parseJSON(body []byte) (*timestamp.Request, error) {
	var in jsonRequest
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&in); err != nil {
		return nil, err
	}
	if d.More() {
		return nil, errors.New("trailing data")
	}
	hash, ok := jsonHashes[in.HashAlgorithm]
	if !ok {
		return nil, errors.New("hashAlgorithm is none of sha256, sha384, sha512")
	}
	if in.TSAPolicyOID != "" && in.TSAPolicyOID != policy.String() {
		return nil, verification.ErrUnacceptedPolicy
	}
	return &timestamp.Request{
		HashAlgorithm: hash,
		HashedMessage: in.ArtifactHash,
		Certificates:  in.Certificates,
		Nonce:         in.Nonce,
	}, nil
}
