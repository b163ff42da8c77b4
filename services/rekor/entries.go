package rekor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path"
	"time"

	"github.com/go-openapi/runtime/middleware"
	"github.com/sigstore/rekor/pkg/api"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/entries"
	"github.com/sigstore/rekor/pkg/types"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/services/rekor/store"
)

// serviceName is how the audit record names this service.
const serviceName = "rekor"

// proposal is a proposed entry that remembers what upstream parsed it into. To
// parse it again would mean to verify its signatures again.
type proposal struct {
	models.ProposedEntry
	entry types.EntryImpl
}

// witnessed wraps a kind of upstream's so that proposals learn their entry.
func witnessed(make func() types.TypeImpl) func() types.TypeImpl {
	if _, done := make().(witness); done {
		return make // by an earlier service of this process
	}
	return func() types.TypeImpl { return witness{make()} }
}

type witness struct{ types.TypeImpl }

func (w witness) UnmarshalEntry(pe models.ProposedEntry) (types.EntryImpl, error) {
	p, ok := pe.(*proposal)
	if !ok {
		return w.TypeImpl.UnmarshalEntry(pe)
	}
	entry, err := w.TypeImpl.UnmarshalEntry(p.ProposedEntry)
	if err == nil {
		p.entry = entry
	}
	return entry, err
}

// create lets upstream log the entry, and withholds its answer until the
// entry's index rows, its attestation and its audit event are on disk. That
// goes for "it is logged already" too: the request that logged it may have died
// before it came so far.
func (s *Service) create(params entries.CreateLogEntryParams) middleware.Responder {
	if err := s.store.Err(); err != nil {
		// Log nothing that could not be found again.
		return createFailed(http.StatusServiceUnavailable, "the search index cannot be written")
	}
	if err := s.cfg.Frozen(); err != nil {
		return createFailed(http.StatusServiceUnavailable, err.Error())
	}
	p := &proposal{ProposedEntry: params.ProposedEntry}
	params.ProposedEntry = p
	answer := api.CreateLogEntryHandler(params)
	if err := s.cfg.Frozen(); err != nil {
		// Meanwhile, so that the answer may lack its signatures.
		return createFailed(http.StatusServiceUnavailable, err.Error())
	}

	// From here on the entry is in the log: a client that goes away must not
	// keep it out of the index.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(params.HTTPRequest.Context()), s.timeout)
	defer cancel()

	var logged models.LogEntry
	var duplicate bool
	switch a := answer.(type) {
	case *entries.CreateLogEntryCreated:
		logged = a.Payload
	case *entries.CreateLogEntryConflict:
		duplicate = true
		var err error
		if logged, err = s.existing(params.HTTPRequest.WithContext(ctx), path.Base(a.Location.String())); err != nil {
			s.logger.Error("an entry that is logged already cannot be read", "error", err)
			return createFailed(http.StatusServiceUnavailable, "the entry is being logged by another request")
		}
	default:
		return answer // nothing was promised
	}
	if err := s.keep(ctx, p.entry, p.Kind(), logged, duplicate); err != nil {
		s.logger.Error("a logged entry was not acknowledged", "error", err)
		return createFailed(http.StatusInternalServerError, "the entry was logged, but not recorded beside the log; send it again")
	}
	return answer
}

// existing waits until an entry that the log refused as its duplicate can be
// read: the request that brought it first may still be under way.
func (s *Service) existing(r *http.Request, id string) (models.LogEntry, error) {
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 100*time.Millisecond) {
		switch a := api.GetLogEntryByUUIDHandler(entries.GetLogEntryByUUIDParams{HTTPRequest: r, EntryUUID: id}).(type) {
		case *entries.GetLogEntryByUUIDOK:
			return a.Payload, nil
		case *entries.GetLogEntryByUUIDNotFound:
		default:
			return nil, fmt.Errorf("reading entry %s", id)
		}
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, fmt.Errorf("waiting for entry %s: %w", id, r.Context().Err())
		}
	}
}

// keep makes durable what belongs to a logged entry.
func (s *Service) keep(ctx context.Context, entry types.EntryImpl, kind string, logged models.LogEntry, duplicate bool) error {
	if entry == nil {
		return errors.New("upstream logged an entry without parsing it")
	}
	record, err := recordOf(entry, logged)
	if err != nil {
		return err
	}
	if record.Attestation != nil && !duplicate {
		echoes.add(1)
	}
	indexed := make(chan error, 1)
	go func() { indexed <- s.store.Put(ctx, record) }()
	err = s.cfg.Audit(ctx, appended(entry, kind, logged, duplicate))
	return errors.Join(<-indexed, err)
}

func recordOf(entry types.EntryImpl, logged models.LogEntry) (store.Record, error) {
	var r store.Record
	if len(logged) != 1 {
		return r, fmt.Errorf("upstream answered with %d entries", len(logged))
	}
	for id := range logged {
		raw, err := hex.DecodeString(id)
		if err != nil || len(raw) != len(r.Entry) {
			return r, fmt.Errorf("upstream named an entry %q", id)
		}
		r.Entry = store.EntryID(raw)
	}
	var err error
	if r.Keys, err = entry.IndexKeys(); err != nil {
		return r, fmt.Errorf("computing an entry's index keys: %w", err)
	}
	if e, ok := entry.(types.EntryWithAttestationImpl); ok {
		// A key without a body means that it is too large to be kept.
		if key, body := e.AttestationKeyValue(); body != nil {
			r.AttestationKey, r.Attestation = key, body
		}
	}
	return r, nil
}

func appended(entry types.EntryImpl, kind string, logged models.LogEntry, duplicate bool) audit.Event {
	fields := map[string]any{"kind": kind}
	if duplicate {
		fields["duplicate"] = true
	}
	for id, e := range logged {
		fields["entry"] = id
		fields["log_index"] = *e.LogIndex
		fields["integrated_time"] = *e.IntegratedTime
		if body, ok := e.Body.([]byte); ok {
			sum := sha256.Sum256(body)
			fields["body_sha256"] = hex.EncodeToString(sum[:])
		}
	}
	// These two are for the reader's convenience: some kinds have neither.
	if digest, err := entry.ArtifactHash(); err == nil {
		fields["artifact"] = digest
	}
	if keys, err := entry.Verifiers(); err == nil {
		var subjects []string
		for _, key := range keys {
			subjects = append(subjects, key.Subjects()...)
		}
		if len(subjects) > 0 {
			fields["subjects"] = subjects
		}
	}
	return audit.Event{Type: audit.Appended, Service: serviceName, Fields: fields}
}

func createFailed(code int, message string) middleware.Responder {
	return entries.NewCreateLogEntryDefault(code).WithPayload(apiError(code, message))
}

func apiError(code int, message string) *models.Error {
	return &models.Error{Code: int64(code), Message: message}
}
