package clienttest

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
)

// serveRekor takes an entry into a log of its own, of which it is the only leaf.
func (i *Instance) serveRekor(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	leaf, err := leafOf(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	uuid, entry, err := i.entry(leaf)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("ETag", uuid)
	w.Header().Set("Location", "/api/v1/log/entries/"+uuid)
	writeJSON(w, http.StatusCreated, map[string]any{uuid: entry})
}

// leafOf is what the log keeps of a proposed entry: a hashedrekord as it is, of
// a dsse the hashes and signatures.
func leafOf(body []byte) ([]byte, error) {
	var proposed struct {
		Kind string `json:"kind"`
		Spec struct {
			ProposedContent struct {
				Envelope  string   `json:"envelope"`
				Verifiers [][]byte `json:"verifiers"`
			} `json:"proposedContent"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &proposed); err != nil {
		return nil, err
	}
	switch proposed.Kind {
	case "hashedrekord":
		return jsoncanonicalizer.Transform(body)
	case "dsse":
		content := proposed.Spec.ProposedContent
		var envelope struct {
			Payload    []byte
			Signatures []struct{ Sig string }
		}
		if err := json.Unmarshal([]byte(content.Envelope), &envelope); err != nil {
			return nil, err
		}
		if len(envelope.Signatures) != 1 || len(content.Verifiers) != 1 {
			return nil, fmt.Errorf("%d signatures", len(envelope.Signatures))
		}
		hash := func(b []byte) map[string]string {
			return map[string]string{"algorithm": "sha256", "value": fmt.Sprintf("%x", sha256.Sum256(b))}
		}
		leaf, err := json.Marshal(map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
			"envelopeHash": hash([]byte(content.Envelope)),
			"payloadHash":  hash(envelope.Payload),
			"signatures":   []any{map[string]any{"signature": envelope.Signatures[0].Sig, "verifier": content.Verifiers[0]}},
		}})
		if err != nil {
			return nil, err
		}
		return jsoncanonicalizer.Transform(leaf)
	}
	return nil, fmt.Errorf("unknown kind %q", proposed.Kind)
}

// entry is the log's answer: promise, proof and checkpoint.
func (i *Instance) entry(leaf []byte) (uuid string, entry map[string]any, err error) {
	der, err := x509.MarshalPKIXPublicKey(i.rekor.Public())
	if err != nil {
		return "", nil, err
	}
	id := sha256.Sum256(der)
	entry = map[string]any{
		"body":           base64.StdEncoding.EncodeToString(leaf),
		"integratedTime": i.Now().Unix(),
		"logID":          hex.EncodeToString(id[:]),
		"logIndex":       0,
	}
	payload, err := json.Marshal(entry)
	if err != nil {
		return "", nil, err
	}
	canonical, err := jsoncanonicalizer.Transform(payload)
	if err != nil {
		return "", nil, err
	}
	promise, err := i.signLog(canonical)
	if err != nil {
		return "", nil, err
	}
	root := sha256.Sum256(append([]byte{0}, leaf...)) // RFC 6962 §2.1
	text := fmt.Sprintf("rekor.test - 1\n1\n%s\n", base64.StdEncoding.EncodeToString(root[:]))
	sig, err := i.signLog([]byte(text))
	if err != nil {
		return "", nil, err
	}
	uuid = hex.EncodeToString(root[:])
	entry["verification"] = map[string]any{
		"signedEntryTimestamp": promise,
		"inclusionProof": map[string]any{
			"checkpoint": fmt.Sprintf("%s\n— rekor.test %s\n", text, base64.StdEncoding.EncodeToString(append(id[:4:4], sig...))),
			"hashes":     []string{}, "logIndex": 0, "rootHash": uuid, "treeSize": 1,
		},
	}
	return uuid, entry, nil
}

func (i *Instance) signLog(message []byte) ([]byte, error) {
	sum := sha256.Sum256(message)
	return ecdsa.SignASN1(rand.Reader, i.rekor, sum[:])
}
