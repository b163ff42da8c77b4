package interop

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"testing"
)

// bundleParts are the parts of a blob's bundle that vouch for something.
var bundleParts = []string{
	"messageSignature.signature",
	"messageSignature.messageDigest.digest",
	"verificationMaterial.certificate.rawBytes",
	"verificationMaterial.tlogEntries.0.canonicalizedBody",
	"verificationMaterial.tlogEntries.0.integratedTime",
	"verificationMaterial.tlogEntries.0.logId.keyId",
	"verificationMaterial.tlogEntries.0.logIndex",
	"verificationMaterial.tlogEntries.0.inclusionPromise.signedEntryTimestamp",
	"verificationMaterial.tlogEntries.0.inclusionProof.logIndex",
	"verificationMaterial.tlogEntries.0.inclusionProof.rootHash",
	"verificationMaterial.tlogEntries.0.inclusionProof.checkpoint.envelope",
	"verificationMaterial.timestampVerificationData.rfc3161Timestamps.0.signedTimestamp",
}

// spoil changes the value at a path of a JSON document.
func spoil(t *testing.T, document, path string) string {
	t.Helper()
	var doc any
	if err := json.Unmarshal([]byte(document), &doc); err != nil {
		t.Fatal(err)
	}
	if !change(doc, strings.Split(path, ".")) {
		t.Fatalf("there is no %s in %s", path, document)
	}
	out, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func change(node any, path []string) bool {
	switch n := node.(type) {
	case map[string]any:
		if len(path) == 1 {
			v, ok := n[path[0]].(string)
			if ok {
				n[path[0]] = changed(v)
			}
			return ok
		}
		return change(n[path[0]], path[1:])
	case []any:
		i, err := strconv.Atoi(path[0])
		return err == nil && i < len(n) && change(n[i], path[1:])
	}
	return false
}

// changed is another value of the same form: a number one higher, a checkpoint
// with another size, else one bit flipped near the end, where signatures are.
func changed(v string) string {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		return strconv.FormatInt(n+1, 10)
	}
	if lines := strings.Split(v, "\n"); len(lines) > 3 {
		lines[1] += "0"
		return strings.Join(lines, "\n")
	}
	raw, err := base64.StdEncoding.DecodeString(v)
	if err != nil || len(raw) < 8 {
		return v + "x"
	}
	raw[len(raw)-4] ^= 1
	return base64.StdEncoding.EncodeToString(raw)
}

// flipSignature spoils the signature in whichever form a client stores it: a
// Sigstore bundle, a DSSE envelope, cosign's own bundle of before, or bare.
func flipSignature(t *testing.T) func([]byte) []byte {
	return func(data []byte) []byte {
		t.Helper()
		var doc any
		if json.Unmarshal(data, &doc) != nil {
			return []byte(changed(string(data)))
		}
		for _, path := range []string{
			"dsseEnvelope.signatures.0.sig", "messageSignature.signature", "signatures.0.sig", "base64Signature",
		} {
			if change(doc, strings.Split(path, ".")) {
				out, err := json.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
		}
		t.Fatalf("no signature in %s", data)
		return nil
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// repository makes a client's name fit for one.
func repository(c *client) string { return strings.ReplaceAll(c.name, " ", "-") }
