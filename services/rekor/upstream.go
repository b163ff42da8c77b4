package rekor

import (
	"context"
	"crypto"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/go-openapi/loads"
	"github.com/go-openapi/runtime"
	"github.com/sigstore/rekor/pkg/api"
	"github.com/sigstore/rekor/pkg/generated/restapi"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/entries"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/index"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/pubkey"
	"github.com/sigstore/rekor/pkg/generated/restapi/operations/tlog"
	"github.com/sigstore/rekor/pkg/types"
	"github.com/sigstore/rekor/pkg/types/cose"
	cose001 "github.com/sigstore/rekor/pkg/types/cose/v0.0.1"
	"github.com/sigstore/rekor/pkg/types/dsse"
	_ "github.com/sigstore/rekor/pkg/types/dsse/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/types/hashedrekord"
	_ "github.com/sigstore/rekor/pkg/types/hashedrekord/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/types/helm"
	_ "github.com/sigstore/rekor/pkg/types/helm/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/types/intoto"
	intoto001 "github.com/sigstore/rekor/pkg/types/intoto/v0.0.1"
	intoto002 "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2"
	"github.com/sigstore/rekor/pkg/types/rekord"
	_ "github.com/sigstore/rekor/pkg/types/rekord/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/types/rfc3161"
	_ "github.com/sigstore/rekor/pkg/types/rfc3161/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/types/tuf"
	_ "github.com/sigstore/rekor/pkg/types/tuf/v0.0.1" // registers itself
	"github.com/sigstore/rekor/pkg/util"
	"github.com/spf13/viper"
)

// maxAttestationBytes is upstream's default for attestations that are kept
// beside the log. Larger ones are logged and not kept.
const maxAttestationBytes = 100 << 10

// claimed is held by the one Service of the process.
var claimed sync.Mutex

// kinds are the kinds of entries taken, which are those parsed at all.
var kinds = []string{
	cose.KIND, dsse.KIND, hashedrekord.KIND, helm.KIND,
	intoto.KIND, rekord.KIND, rfc3161.KIND, tuf.KIND,
}

// configureUpstream sets upstream's package variables. Upstream reports what it
// does not like by panicking.
func configureUpstream(cfg Config, st records) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("configuring the log server: %v", p)
		}
	}()
	upstreamLogger.Store(cfg.Logger)
	restrictKinds()
	for _, limit := range []func(int){
		cose001.SetMaxAttestationSize, intoto001.SetMaxAttestationSize, intoto002.SetMaxAttestationSize,
	} {
		limit(maxAttestationBytes)
	}

	ref := signerScheme + strconv.FormatInt(cfg.TreeID, 10)
	provideSigners(map[string]crypto.Signer{ref: guardedSigner{cfg.Signer, cfg.Frozen}})
	attestations.Store(&st)

	// Viper is read while requests are served; nothing but these keys is set,
	// and no flag is bound, so that its look-ups stay cheap.
	viper.Set("rekor_server.hostname", cfg.Hostname)
	viper.Set("rekor_server.signer", ref)
	viper.Set("trillian_log_server.address", cfg.TrillianAddress)
	viper.Set("trillian_log_server.port", cfg.TrillianPort)
	viper.Set("enable_attestation_storage", true)
	viper.Set("attestation_storage_bucket", bucketScheme+"://")
	api.ConfigureAPI(cfg.TreeID)
	configured = true
	return nil
}

// configured says that upstream has something to release. It is guarded by
// claimed.
var configured bool

func releaseUpstream() {
	if configured {
		echoes.wait()
		api.StopAPI()
		configured = false
	}
	attestations.Store(nil)
	upstreamLogger.Store(nil)
}

// restrictKinds leaves upstream only the kinds that are taken. Its own switch is
// not enough: entries are parsed before it is asked, and a search by entry does
// not ask it.
func restrictKinds() {
	types.SetAllowedKindsForSubmission(kinds)
	types.TypeMap.Range(func(kind, make any) bool {
		switch {
		case !slices.Contains(kinds, kind.(string)):
			types.TypeMap.Delete(kind)
		default:
			types.TypeMap.Store(kind, witnessed(make.(func() types.TypeImpl)))
		}
		return true
	})
}

// routes is upstream's API with our handlers where an answer promises more than
// the log's own durability, and without upstream's middleware for logs, metrics
// and cross-origin requests.
func (s *Service) routes() (http.Handler, error) {
	doc, err := loads.Embedded(restapi.SwaggerJSON, restapi.FlatSwaggerJSON)
	if err != nil {
		return nil, fmt.Errorf("loading the api's description: %w", err)
	}
	a := operations.NewRekorServerAPI(doc)
	a.ServeError = s.serveError
	a.Logger = func(string, ...any) {} // says which routes there are
	a.ApplicationXPemFileProducer = runtime.TextProducer()
	a.RegisterFormat("signedCheckpoint", &util.SignedNote{}, util.SignedCheckpointValidator)

	a.EntriesCreateLogEntryHandler = entries.CreateLogEntryHandlerFunc(s.create)
	a.IndexSearchIndexHandler = index.SearchIndexHandlerFunc(s.search)
	a.EntriesGetLogEntryByIndexHandler = entries.GetLogEntryByIndexHandlerFunc(s.entryByIndex)
	a.EntriesGetLogEntryByUUIDHandler = entries.GetLogEntryByUUIDHandlerFunc(s.entryByUUID)
	a.EntriesSearchLogQueryHandler = entries.SearchLogQueryHandlerFunc(s.entriesByQuery)
	a.PubkeyGetPublicKeyHandler = pubkey.GetPublicKeyHandlerFunc(api.GetPublicKeyHandler)
	a.TlogGetLogInfoHandler = tlog.GetLogInfoHandlerFunc(s.logInfo)
	a.TlogGetLogProofHandler = tlog.GetLogProofHandlerFunc(api.GetLogProofHandler)
	if err := a.Validate(); err != nil {
		return nil, fmt.Errorf("setting up the api: %w", err)
	}
	a.Init()
	return a.Context().RoutesHandler(nil), nil
}

// answers asks the log for its root.
func (s *Service) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/api/v1/log", nil)
	if err != nil {
		return false
	}
	_, ok := api.GetLogInfoHandler(tlog.GetLogInfoParams{HTTPRequest: req}).(*tlog.GetLogInfoOK)
	return ok
}
