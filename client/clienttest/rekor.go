package clienttest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/go-openapi/runtime"
	"github.com/go-openapi/strfmt"
	"github.com/go-openapi/swag/conv"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1"         // kinds of entry
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1" // that clients make
	"github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore/pkg/signature"
)

// serveRekor takes an entry into a log of its own, of which it is the only leaf.
func (i *Instance) serveRekor(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	proposed, err := models.UnmarshalProposedEntry(bytes.NewReader(body), runtime.JSONConsumer())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	uuid, entry, err := i.entry(r.Context(), proposed)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("ETag", uuid)
	w.Header().Set("Location", "/api/v1/log/entries/"+uuid)
	writeJSON(w, http.StatusCreated, models.LogEntry{uuid: *entry})
}

func (i *Instance) entry(ctx context.Context, proposed models.ProposedEntry) (string, *models.LogEntryAnon, error) {
	impl, err := types.UnmarshalEntry(proposed)
	if err != nil {
		return "", nil, err
	}
	leaf, err := types.CanonicalizeEntry(ctx, impl)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(i.rekor.Public())
	if err != nil {
		return "", nil, err
	}
	signer, err := signature.LoadECDSASignerVerifier(i.rekor, crypto.SHA256)
	if err != nil {
		return "", nil, err
	}
	id := sha256.Sum256(der)
	entry := &models.LogEntryAnon{
		Body:           base64.StdEncoding.EncodeToString(leaf),
		IntegratedTime: conv.Pointer(i.Now().Unix()),
		LogID:          conv.Pointer(hex.EncodeToString(id[:])),
		LogIndex:       conv.Pointer(int64(0)),
	}
	payload, err := entry.MarshalBinary()
	if err != nil {
		return "", nil, err
	}
	canonical, err := jsoncanonicalizer.Transform(payload)
	if err != nil {
		return "", nil, err
	}
	set, err := signer.SignMessage(bytes.NewReader(canonical))
	if err != nil {
		return "", nil, err
	}
	root := sha256.Sum256(append([]byte{0}, leaf...))
	checkpoint, err := util.CreateAndSignCheckpoint(ctx, "rekor.test", 1, 1, root[:], signer)
	if err != nil {
		return "", nil, err
	}
	entry.Verification = &models.LogEntryAnonVerification{
		SignedEntryTimestamp: strfmt.Base64(set),
		InclusionProof: &models.InclusionProof{
			Checkpoint: conv.Pointer(string(checkpoint)), Hashes: []string{}, LogIndex: conv.Pointer(int64(0)),
			RootHash: conv.Pointer(hex.EncodeToString(root[:])), TreeSize: conv.Pointer(int64(1)),
		},
	}
	return hex.EncodeToString(root[:]), entry, nil
}
