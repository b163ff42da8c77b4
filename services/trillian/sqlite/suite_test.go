package sqlite

import (
	"context"
	"testing"

	"github.com/google/trillian/extension"
	trillianintegration "github.com/google/trillian/integration"
	"github.com/google/trillian/integration/storagetest"
	"github.com/google/trillian/quota"
	"github.com/google/trillian/storage"
	storagetesting "github.com/google/trillian/storage/testonly"
	"github.com/google/trillian/testonly/integration"
)

func TestUpstreamLogStorage(t *testing.T) {
	storagetest.RunLogStorageTests(t, func(_ context.Context, t *testing.T) (storage.LogStorage, storage.AdminStorage) {
		s := newStorage(t, t.TempDir(), Options{})
		return s, s.Admin()
	})
}

func TestUpstreamAdminStorage(t *testing.T) {
	tester := storagetesting.AdminStorageTester{NewAdminStorage: func() storage.AdminStorage {
		return newStorage(t, t.TempDir(), Options{}).Admin()
	}}
	tester.RunAllTests(t)
}

func TestUpstreamLogIntegration(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"timed", Options{}},
		{"on write", Options{Sequence: integrate, HashLeaf: hashLeaf}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStorage(t, t.TempDir(), test.opts)
			registry := extension.Registry{AdminStorage: s.Admin(), LogStorage: s, QuotaManager: quota.Noop()}
			env, err := integration.NewLogEnvWithRegistry(t.Context(), 1, registry)
			if err != nil {
				t.Fatal(err)
			}
			defer env.Close()
			tree := newTree(t, s)
			params := trillianintegration.DefaultTestParameters(tree.TreeId)
			if err := trillianintegration.RunLogIntegration(env.Log, params); err != nil {
				t.Fatal(err)
			}
		})
	}
}
