package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/sigbox/sigbox/internal/config"
	"github.com/sigbox/sigbox/internal/keys"
	"github.com/sigbox/sigbox/internal/state"
	"github.com/sigbox/sigbox/services/issuer"
)

// locate reads what the folder says of its instance. With PostgreSQL that is
// the configuration alone: knowInstance asks the database for the rest.
func locate(dir string) (layout, state.Instance, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, state.Instance{}, err
	}
	cfg, err := config.Load(dir)
	if err == nil && cfg.Storage.Engine == config.Postgres {
		return layout{dir, cfg}, state.Instance{}, nil
	}
	// A folder that is missing or half-made says more than its configuration.
	instance, stateErr := state.Load(dir)
	if stateErr != nil {
		return layout{}, instance, stateErr
	}
	if err != nil {
		return layout{}, instance, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return layout{dir, cfg}, instance, nil
}

// AskStatus tells how the instance in dir is, running or not.
func AskStatus(ctx context.Context, dir string) (Status, error) {
	l, _, err := locate(dir)
	if err != nil {
		return Status{}, err
	}
	var st Status
	err = askAdmin(ctx, l.socket(), http.MethodGet, "/status", nil, &st)
	if !errors.Is(err, ErrNotRunning) {
		return st, err
	}
	db, instance, err := l.openInstance(ctx)
	if err != nil {
		return Status{}, err
	}
	if db != nil {
		defer db.Close()
	}
	st = Status{
		ID: instance.ID, URL: instance.URL, RootSHA256: instance.RootSHA256, Quickstart: l.cfg.Quickstart, Epoch: instance.Epoch,
		Problems: []Problem{{"process", ErrNotRunning.Error()}},
	}
	if st.Logs, err = readLogs(ctx, l, instance); err != nil {
		st.Problems = append(st.Problems, Problem{"logs", err.Error()})
	}
	for _, log := range st.Logs {
		if log.Frozen != nil {
			st.Problems = append(st.Problems, Problem{log.Name, log.Frozen.Reason})
		}
	}
	repo, err := l.repositories(db).load(ctx)
	if err != nil {
		st.Problems = append(st.Problems, Problem{"tuf", err.Error()})
		return st, nil
	}
	for _, e := range repo.Expiries() {
		st.Expiries = append(st.Expiries, Expiry{"tuf " + e.Role, e.Expires})
	}
	return st, nil
}

// AskToken has the instance in dir mint a token of its /ci issuer. Where it
// does not run, the key is used directly.
func AskToken(ctx context.Context, dir string, req TokenRequest) (TokenAnswer, error) {
	l, _, err := locate(dir)
	if err != nil {
		return TokenAnswer{}, err
	}
	body, err := json.Marshal(req)
	if err != nil {
		return TokenAnswer{}, err
	}
	var answer TokenAnswer
	err = askAdmin(ctx, l.socket(), http.MethodPost, "/token", bytes.NewReader(body), &answer)
	if !errors.Is(err, ErrNotRunning) {
		return answer, err
	}
	pass, err := keys.ReadPassphrase(l.passphrase())
	if err != nil {
		return answer, err
	}
	key, err := keys.Load(l.key(keyCI), pass)
	if err != nil {
		return answer, err
	}
	db, _, err := l.openInstance(ctx)
	if err != nil {
		return answer, err
	}
	if db != nil {
		defer db.Close()
	}
	ci, err := issuer.NewCI(ctx, issuer.CIConfig{
		URL: l.cfg.URL + ciPath, Signer: key, Dir: l.issuer(), Postgres: db.Pool(), DefaultTTL: l.cfg.CI.DefaultTTL, MaxTTL: l.cfg.CI.MaxTTL,
	})
	if err != nil {
		return answer, err
	}
	answer, err = mint(ci, req)
	return answer, errors.Join(err, ci.Close())
}

// ErrRequest means that what was asked for makes no sense.
var ErrRequest = errors.New("refused")

func mint(ci *issuer.CI, req TokenRequest) (TokenAnswer, error) {
	var ttl time.Duration
	if req.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(req.TTL); err != nil {
			return TokenAnswer{}, fmt.Errorf("%w: ttl: %w", ErrRequest, err)
		}
		if ttl <= 0 {
			return TokenAnswer{}, fmt.Errorf("%w: ttl %s is not a time to live", ErrRequest, req.TTL)
		}
	}
	t, err := ci.Mint(req.Subject, ttl)
	if err != nil {
		return TokenAnswer{}, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return TokenAnswer{Token: t.Raw, Identity: t.Identity, Expires: t.Expiry}, nil
}
