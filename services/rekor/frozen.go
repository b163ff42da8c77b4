package rekor

import (
	"crypto"
	"io"
	"net/http"

	"github.com/go-openapi/runtime/middleware"
	"github.com/sigstore/rekor/pkg/api"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/entries"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/tlog"
)

// guardedSigner signs nothing while the log is frozen, whoever asks. Upstream
// reads no entry without signing for it, so what it gets then is no error, but
// no signature either, and the handlers below take it out of the answer.
type guardedSigner struct {
	crypto.Signer
	frozen func() error
}

var notSigned = []byte("not signed: the log is frozen")

func (s guardedSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if s.frozen() != nil {
		return notSigned, nil
	}
	return s.Signer.Sign(rand, digest, opts)
}

// unpromised takes promise, proof and checkpoint out of entries of a frozen
// log. It is asked after they were signed, so that it sees whatever the signer
// saw.
func (s *Service) unpromised(list ...models.LogEntry) {
	if s.cfg.Frozen() == nil {
		return
	}
	for _, entry := range list {
		for id, e := range entry {
			e.Verification = nil
			entry[id] = e
		}
	}
}

func (s *Service) entryByIndex(params entries.GetLogEntryByIndexParams) middleware.Responder {
	answer := api.GetLogEntryByIndexHandler(params)
	if a, ok := answer.(*entries.GetLogEntryByIndexOK); ok {
		s.unpromised(a.Payload)
	}
	return answer
}

func (s *Service) entryByUUID(params entries.GetLogEntryByUUIDParams) middleware.Responder {
	answer := api.GetLogEntryByUUIDHandler(params)
	if a, ok := answer.(*entries.GetLogEntryByUUIDOK); ok {
		s.unpromised(a.Payload)
	}
	return answer
}

func (s *Service) entriesByQuery(params entries.SearchLogQueryParams) middleware.Responder {
	answer := api.SearchLogQueryHandler(params)
	if a, ok := answer.(*entries.SearchLogQueryOK); ok {
		s.unpromised(a.Payload...)
	}
	return answer
}

// logInfo is nothing but a signed tree head, and that of a frozen log may be
// smaller than one that was published.
func (s *Service) logInfo(params tlog.GetLogInfoParams) middleware.Responder {
	answer := api.GetLogInfoHandler(params)
	if err := s.cfg.Frozen(); err != nil {
		return tlog.NewGetLogInfoDefault(http.StatusServiceUnavailable).WithPayload(apiError(http.StatusServiceUnavailable, err.Error()))
	}
	return answer
}
