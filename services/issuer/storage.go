package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/dexidp/dex/storage"
)

// What follows maps the methods Dex asks for onto the kinds of objects.

const onlyKeys = "current" // the id of the one set of keys

func sessionID(userID, connID string) string {
	return fmt.Sprintf("%d:%s%s", len(userID), userID, connID)
}

func (s *store) Close() error { return s.db.Close() }

func (s *store) CreateAuthRequest(ctx context.Context, v storage.AuthRequest) error {
	return authRequests.create(ctx, s, v.ID, v)
}

func (s *store) CreateClient(ctx context.Context, v storage.Client) error {
	return clients.create(ctx, s, v.ID, v)
}

func (s *store) CreateAuthCode(ctx context.Context, v storage.AuthCode) error {
	return authCodes.create(ctx, s, v.ID, v)
}

func (s *store) CreateRefresh(ctx context.Context, v storage.RefreshToken) error {
	return refreshTokens.create(ctx, s, v.ID, v)
}

func (s *store) CreatePassword(ctx context.Context, v storage.Password) error {
	v.Email = strings.ToLower(v.Email)
	return passwords.create(ctx, s, v.Email, v)
}

func (s *store) CreateOfflineSessions(ctx context.Context, v storage.OfflineSessions) error {
	return offlineSessions.create(ctx, s, sessionID(v.UserID, v.ConnID), v)
}

func (s *store) CreateConnector(ctx context.Context, v storage.Connector) error {
	return connectors.create(ctx, s, v.ID, v)
}

func (s *store) CreateDeviceRequest(ctx context.Context, v storage.DeviceRequest) error {
	return deviceRequests.create(ctx, s, v.UserCode, v)
}

func (s *store) CreateDeviceToken(ctx context.Context, v storage.DeviceToken) error {
	return deviceTokens.create(ctx, s, v.DeviceCode, v)
}

func (s *store) GetAuthRequest(ctx context.Context, id string) (storage.AuthRequest, error) {
	return authRequests.get(ctx, s, id)
}

func (s *store) GetAuthCode(ctx context.Context, id string) (storage.AuthCode, error) {
	return authCodes.get(ctx, s, id)
}

func (s *store) GetClient(ctx context.Context, id string) (storage.Client, error) {
	return clients.get(ctx, s, id)
}

func (s *store) GetKeys(ctx context.Context) (storage.Keys, error) {
	return signingKeys.get(ctx, s, onlyKeys)
}

func (s *store) GetRefresh(ctx context.Context, id string) (storage.RefreshToken, error) {
	return refreshTokens.get(ctx, s, id)
}

func (s *store) GetPassword(ctx context.Context, email string) (storage.Password, error) {
	return passwords.get(ctx, s, strings.ToLower(email))
}

func (s *store) GetOfflineSessions(ctx context.Context, userID, connID string) (storage.OfflineSessions, error) {
	return offlineSessions.get(ctx, s, sessionID(userID, connID))
}

func (s *store) GetConnector(ctx context.Context, id string) (storage.Connector, error) {
	return connectors.get(ctx, s, id)
}

func (s *store) GetDeviceRequest(ctx context.Context, userCode string) (storage.DeviceRequest, error) {
	return deviceRequests.get(ctx, s, userCode)
}

func (s *store) GetDeviceToken(ctx context.Context, deviceCode string) (storage.DeviceToken, error) {
	return deviceTokens.get(ctx, s, deviceCode)
}

func (s *store) ListClients(ctx context.Context) ([]storage.Client, error) {
	return clients.list(ctx, s)
}

func (s *store) ListRefreshTokens(ctx context.Context) ([]storage.RefreshToken, error) {
	return refreshTokens.list(ctx, s)
}

func (s *store) ListPasswords(ctx context.Context) ([]storage.Password, error) {
	return passwords.list(ctx, s)
}

func (s *store) ListConnectors(ctx context.Context) ([]storage.Connector, error) {
	return connectors.list(ctx, s)
}

func (s *store) DeleteAuthRequest(ctx context.Context, id string) error {
	return authRequests.remove(ctx, s, id)
}

func (s *store) DeleteAuthCode(ctx context.Context, code string) error {
	return authCodes.remove(ctx, s, code)
}

func (s *store) DeleteClient(ctx context.Context, id string) error {
	return clients.remove(ctx, s, id)
}

func (s *store) DeleteRefresh(ctx context.Context, id string) error {
	return refreshTokens.remove(ctx, s, id)
}

func (s *store) DeletePassword(ctx context.Context, email string) error {
	return passwords.remove(ctx, s, strings.ToLower(email))
}

func (s *store) DeleteOfflineSessions(ctx context.Context, userID, connID string) error {
	return offlineSessions.remove(ctx, s, sessionID(userID, connID))
}

func (s *store) DeleteConnector(ctx context.Context, id string) error {
	return connectors.remove(ctx, s, id)
}

func (s *store) UpdateClient(ctx context.Context, id string, change func(storage.Client) (storage.Client, error)) error {
	return clients.update(ctx, s, id, change)
}

// UpdateKeys starts from empty keys if there are none.
func (s *store) UpdateKeys(ctx context.Context, change func(storage.Keys) (storage.Keys, error)) error {
	if err := signingKeys.create(ctx, s, onlyKeys, storage.Keys{}); err != nil && !errors.Is(err, storage.ErrAlreadyExists) {
		return err
	}
	return signingKeys.update(ctx, s, onlyKeys, change)
}

func (s *store) UpdateAuthRequest(ctx context.Context, id string, change func(storage.AuthRequest) (storage.AuthRequest, error)) error {
	return authRequests.update(ctx, s, id, change)
}

func (s *store) UpdateRefreshToken(ctx context.Context, id string, change func(storage.RefreshToken) (storage.RefreshToken, error)) error {
	return refreshTokens.update(ctx, s, id, change)
}

func (s *store) UpdatePassword(ctx context.Context, email string, change func(storage.Password) (storage.Password, error)) error {
	return passwords.update(ctx, s, strings.ToLower(email), change)
}

func (s *store) UpdateOfflineSessions(ctx context.Context, userID, connID string, change func(storage.OfflineSessions) (storage.OfflineSessions, error)) error {
	return offlineSessions.update(ctx, s, sessionID(userID, connID), change)
}

func (s *store) UpdateConnector(ctx context.Context, id string, change func(storage.Connector) (storage.Connector, error)) error {
	return connectors.update(ctx, s, id, change)
}

func (s *store) UpdateDeviceToken(ctx context.Context, deviceCode string, change func(storage.DeviceToken) (storage.DeviceToken, error)) error {
	return deviceTokens.update(ctx, s, deviceCode, change)
}

// GarbageCollect deletes what expired before now.
func (s *store) GarbageCollect(ctx context.Context, now time.Time) (result storage.GCResult, err error) {
	for name, count := range map[string]*int64{
		authRequests.name:   &result.AuthRequests,
		authCodes.name:      &result.AuthCodes,
		deviceRequests.name: &result.DeviceRequests,
		deviceTokens.name:   &result.DeviceTokens,
	} {
		n, failed := s.exec(ctx, `DELETE FROM object WHERE kind = $1 AND expiry < $2`, name, now.Unix())
		*count = n
		err = errors.Join(err, failed)
	}
	return result, err
}
