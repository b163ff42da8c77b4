package keyless

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
)

// A LogEntry is what version 1 of Rekor's API answers.
type LogEntry struct {
	UUID           string `json:"-"`
	Body           []byte `json:"body"`
	IntegratedTime int64  `json:"integratedTime"` // seconds since 1970
	LogID          string `json:"logID"`          // hexadecimal
	LogIndex       int64  `json:"logIndex"`
	Verification   struct {
		InclusionProof InclusionProof `json:"inclusionProof"`
		SET            []byte         `json:"signedEntryTimestamp"`
	} `json:"verification"`
}

// An InclusionProof shows that an entry is in the tree of the checkpoint.
type InclusionProof struct {
	Checkpoint string   `json:"checkpoint"`
	Hashes     []string `json:"hashes"` // hexadecimal
	LogIndex   int64    `json:"logIndex"`
	RootHash   string   `json:"rootHash"` // hexadecimal
	TreeSize   int64    `json:"treeSize"`
}

type hashedRekord struct {
	APIVersion string           `json:"apiVersion"`
	Kind       string           `json:"kind"`
	Spec       hashedRekordSpec `json:"spec"`
}

type hashedRekordSpec struct {
	Data struct {
		Hash struct {
			Algorithm string `json:"algorithm"`
			Value     string `json:"value"`
		} `json:"hash"`
	} `json:"data"`
	Signature struct {
		Content   []byte `json:"content"`
		PublicKey struct {
			Content []byte `json:"content"`
		} `json:"publicKey"`
	} `json:"signature"`
}

// HashedRekord is the proposed entry for a signature over a digest, by a
// certificate in DER.
func HashedRekord(digest [sha256.Size]byte, signature, certificate []byte) ([]byte, error) {
	e := hashedRekord{APIVersion: "0.0.1", Kind: "hashedrekord"}
	e.Spec.Data.Hash.Algorithm = "sha256"
	e.Spec.Data.Hash.Value = hex.EncodeToString(digest[:])
	e.Spec.Signature.Content = signature
	e.Spec.Signature.PublicKey.Content = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	return json.Marshal(e)
}

// Log writes the signature to the log and returns the entry with its proof.
func (c *Client) Log(ctx context.Context, digest [sha256.Size]byte, signature, certificate []byte) (LogEntry, error) {
	body, err := HashedRekord(digest, signature, certificate)
	if err != nil {
		return LogEntry{}, err
	}
	return c.LogEntry(ctx, body)
}

// LogEntry writes a proposed entry.
func (c *Client) LogEntry(ctx context.Context, proposed []byte) (LogEntry, error) {
	data, err := c.post(ctx, c.Services.Rekor+"/api/v1/log/entries", "application/json", proposed)
	if err != nil {
		return LogEntry{}, err
	}
	return ParseLogEntry(data)
}

// ParseLogEntry reads an answer of Rekor's with one entry in it.
func ParseLogEntry(data []byte) (LogEntry, error) {
	var answer map[string]LogEntry
	if err := json.Unmarshal(data, &answer); err != nil {
		return LogEntry{}, err
	}
	if len(answer) != 1 {
		return LogEntry{}, fmt.Errorf("%d entries in the answer", len(answer))
	}
	var entry LogEntry
	for uuid, e := range answer {
		entry = e
		entry.UUID = uuid
	}
	if len(entry.Verification.SET) == 0 || entry.Verification.InclusionProof.Checkpoint == "" {
		return LogEntry{}, errors.New("no promise or no proof with the entry")
	}
	return entry, nil
}
