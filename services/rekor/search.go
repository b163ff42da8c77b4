package rekor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"

	"github.com/go-openapi/runtime/middleware"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/index"
	"github.com/sigstore/rekor/pkg/pki"
	"github.com/sigstore/rekor/pkg/util"

	"github.com/sigbox/sigbox/services/rekor/store"
)

// maxResults bounds the answer to a search, which has no pages.
const maxResults = 100_000

// search answers as upstream's own index does, from the store. Upstream has
// validated the query against the API's description.
func (s *Service) search(params index.SearchIndexParams) middleware.Responder {
	found, err := s.find(params.HTTPRequest.Context(), params.Query)
	var bad badQuery
	switch {
	case err == nil:
		return index.NewSearchIndexOK().WithPayload(found)
	case errors.As(err, &bad):
		return index.NewSearchIndexBadRequest().WithPayload(apiError(http.StatusBadRequest, bad.Error()))
	case errors.Is(err, store.ErrTooMany):
		return searchFailed(http.StatusUnprocessableEntity, fmt.Sprintf("more than %d entries match: narrow the search", maxResults))
	case errors.Is(err, context.DeadlineExceeded):
		return searchFailed(http.StatusGatewayTimeout, "the search took too long")
	case errors.Is(err, context.Canceled):
		return searchFailed(499, "client disconnected during request") // upstream's code for it
	default:
		s.logger.Error("search failed", "error", err)
		return searchFailed(http.StatusInternalServerError, "unexpected result from searching index")
	}
}

func searchFailed(code int, message string) middleware.Responder {
	return index.NewSearchIndexDefault(code).WithPayload(apiError(code, message))
}

// badQuery is an error of the client's.
type badQuery string

func (b badQuery) Error() string { return string(b) }

func (s *Service) find(ctx context.Context, query *models.SearchIndex) ([]string, error) {
	criteria, err := criteria(query)
	if err != nil {
		return nil, err
	}
	find := s.store.Any
	if query.Operator == models.SearchIndexOperatorAnd {
		find = s.store.All
	}
	entries, err := find(ctx, criteria, maxResults)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = hex.EncodeToString(e[:])
	}
	return ids, nil
}

// criteria are what an entry is asked for, the rarest kind first.
func criteria(query *models.SearchIndex) ([]store.Criterion, error) {
	var all []store.Criterion
	if query.Hash != "" {
		// Entries spell digests with their algorithm; a query need not.
		all = append(all, store.Criterion{util.PrefixSHA(query.Hash)})
	}
	if query.PublicKey != nil {
		digest, err := keyDigest(query.PublicKey)
		if err != nil {
			return nil, err
		}
		// Upstream's kinds do not agree on the spelling: dsse and intoto put the
		// algorithm in front, and upstream's own search misses those.
		all = append(all, store.Criterion{digest, "sha256:" + digest})
	}
	if query.Email != "" {
		all = append(all, store.Criterion{query.Email.String()})
	}
	if query.Subject != "" {
		all = append(all, store.Criterion{query.Subject})
	}
	return all, nil
}

func keyDigest(key *models.SearchIndexPublicKey) (string, error) {
	if key.Format == nil {
		return "", badQuery("the public key has no format")
	}
	factory, err := pki.NewArtifactFactory(pki.Format(*key.Format))
	if err != nil {
		return "", badQuery("the PKI format requested is not supported by this server")
	}
	public, err := factory.NewPublicKey(bytes.NewReader(key.Content))
	if err != nil {
		return "", badQuery("public key provided could not be parsed")
	}
	canonical, err := public.CanonicalValue()
	if err != nil {
		return "", badQuery("public key provided has no canonical form")
	}
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:]), nil
}
