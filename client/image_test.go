package client_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigbox/sigbox/client"
	"github.com/sigbox/sigbox/client/clienttest"
	"github.com/sigbox/sigbox/internal/cli"
)

// newRegistry serves images; handle may answer in its place.
func newRegistry(t *testing.T, referrers bool, handle func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	reg := registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if handle == nil || !handle(w, r) {
			reg.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func push(t *testing.T, host string) name.Digest {
	t.Helper()
	img, err := random.Image(256, 1)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return tag.Context().Digest(d.String())
}

func TestSignAndVerifyImage(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, referrers := range []bool{true, false} {
		t.Run(fmt.Sprintf("referrers=%v", referrers), func(t *testing.T) {
			image := push(t, newRegistry(t, referrers, nil))
			var reg client.Registry
			s := signer(t, i, p)
			var signed *client.SignedImage
			for range 2 {
				if signed, err = s.SignImage(t.Context(), image.String(), reg); err != nil {
					t.Fatal(err)
				}
			}
			v, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), reg)
			if err != nil {
				t.Fatal(err)
			}
			if v.Image != image.String() || v.Subject != alice {
				t.Errorf("%+v", v)
			}
			// By tag the answer names the digest.
			tagged := image.Context().Tag("v1").String()
			if v, err = trust.VerifyImage(t.Context(), tagged, aliceAt(i), reg); err != nil || v.Image != image.String() {
				t.Errorf("%+v, %v", v, err)
			}
			if _, err := s.SignImage(t.Context(), tagged, reg); cli.Code(err) != cli.ExitUsage {
				t.Errorf("a tag was signed: %v", err)
			}
			other := push(t, image.RegistryStr())
			for what, c := range map[string]struct {
				image string
				id    client.Identity
			}{
				"another identity": {image.String(), client.Identity{Subject: "bob@example.com", Issuer: i.Issuer()}},
				"unsigned":         {other.String(), aliceAt(i)},
			} {
				if _, err := trust.VerifyImage(t.Context(), c.image, c.id, reg); cli.Code(err) != cli.ExitNo {
					t.Errorf("%s: exit code %d: %v", what, cli.Code(err), err)
				}
			}
			if _, err := trust.VerifyImage(t.Context(), image.String(), client.Identity{}, reg); cli.Code(err) != cli.ExitUsage {
				t.Errorf("no identity: %v", err)
			}
			checkManifest(t, signed.Reference, image)
		})
	}
}

// checkManifest holds what cosign v3 writes and looks for.
func checkManifest(t *testing.T, reference string, image name.Digest) {
	t.Helper()
	ref, err := name.NewDigest(reference)
	if err != nil {
		t.Fatal(err)
	}
	desc, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	const bundle = "application/vnd.dev.sigstore.bundle.v0.3+json"
	if m.ArtifactType != bundle || m.Subject == nil || m.Subject.Digest.String() != image.DigestStr() ||
		len(m.Layers) != 1 || string(m.Layers[0].MediaType) != bundle ||
		m.Config.MediaType != "application/vnd.oci.empty.v1+json" ||
		m.Annotations["dev.sigstore.bundle.content"] != "dsse-envelope" ||
		m.Annotations["dev.sigstore.bundle.predicateType"] != "https://sigstore.dev/cosign/sign/v1" ||
		m.Annotations["org.opencontainers.image.created"] == "" {
		t.Errorf("manifest %s", desc.Manifest)
	}
}

// attachTo hangs an artifact on an image as anyone who may push can.
func attachTo(t *testing.T, image name.Digest, artifactType string, layers ...v1.Layer) {
	t.Helper()
	subject, err := remote.Get(image)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layers...)
	if err != nil {
		t.Fatal(err)
	}
	img = mutate.ConfigMediaType(img, types.MediaType(artifactType))
	img = mutate.Subject(img, subject.Descriptor).(v1.Image)
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(image.Context().Digest(d.String()), img); err != nil {
		t.Fatal(err)
	}
}

const bundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

func TestVerifyImageRefuses(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	blob := signBlob(t, i, p, "hello")
	for _, c := range []struct {
		name   string
		layers []v1.Layer
	}{
		{"rubbish", []v1.Layer{static.NewLayer([]byte("rubbish"), bundleType)}},
		{"a blob's signature", []v1.Layer{static.NewLayer(blob, bundleType)}},
		{"two layers", []v1.Layer{static.NewLayer(blob, bundleType), static.NewLayer([]byte("x"), bundleType)}},
		{"a huge layer", []v1.Layer{static.NewLayer(make([]byte, 2<<20), bundleType)}},
		{"no bundle", []v1.Layer{static.NewLayer(blob, "text/plain")}},
		{"no layer", nil},
	} {
		image := push(t, newRegistry(t, true, nil))
		attachTo(t, image, bundleType, c.layers...)
		if _, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{}); cli.Code(err) != cli.ExitNo {
			t.Errorf("%s: exit code %d: %v", c.name, cli.Code(err), err)
		}
		// A good one beside it is enough.
		if _, err := signer(t, i, p).SignImage(t.Context(), image.String(), client.Registry{}); err != nil {
			t.Fatal(err)
		}
		if _, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{}); err != nil {
			t.Errorf("%s and a good one: %v", c.name, err)
		}
	}
}

// TestSignatureOfAnother moves a genuine signature to another image.
func TestSignatureOfAnother(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	host := newRegistry(t, true, nil)
	image, other := push(t, host), push(t, host)
	signed, err := signer(t, i, p).SignImage(t.Context(), image.String(), client.Registry{})
	if err != nil {
		t.Fatal(err)
	}
	attachTo(t, other, bundleType, static.NewLayer(signed.Bundle, bundleType))
	_, err = trust.VerifyImage(t.Context(), other.String(), aliceAt(i), client.Registry{})
	if cli.Code(err) != cli.ExitNo || !strings.Contains(err.Error(), "digest") {
		t.Errorf("%v", err)
	}
}

// TestEndlessSignatures: whoever may push may add as many as he likes.
func TestEndlessSignatures(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var manifests int
	host := newRegistry(t, true, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet {
			manifests++
		}
		if !strings.Contains(r.URL.Path, "/referrers/") {
			return false
		}
		index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
		for n := range 5000 {
			index.Manifests = append(index.Manifests, v1.Descriptor{
				MediaType: types.OCIManifestSchema1, ArtifactType: bundleType,
				Digest: v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064x", n)}, Size: 1,
			})
		}
		w.Header().Set("Content-Type", string(types.OCIImageIndex))
		_ = json.NewEncoder(w).Encode(index)
		return true
	})
	image := push(t, host)
	manifests = 0
	_, err = trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{})
	if cli.Code(err) != cli.ExitFailed || manifests > 100 {
		t.Errorf("%d manifests read; %v", manifests, err)
	}
}

// TestRegistryDropsSignature: two writers of the index that stands in for the
// list of referrers can overwrite each other.
func TestRegistryDropsSignature(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	drop := 2
	host := newRegistry(t, false, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/sha256-") && drop > 0 {
			drop--
			w.WriteHeader(http.StatusCreated)
			return true
		}
		return false
	})
	image := push(t, host)
	if _, err := signer(t, i, p).SignImage(t.Context(), image.String(), client.Registry{}); err != nil {
		t.Fatal(err)
	}
	if _, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{}); err != nil {
		t.Error(err)
	}
	drop = 1000
	other := push(t, host)
	if _, err := signer(t, i, p).SignImage(t.Context(), other.String(), client.Registry{}); cli.Code(err) != cli.ExitFailed {
		t.Errorf("success was reported for a signature that nobody finds: %v", err)
	}
}

// TestRegistrySwaps: the registry answers with other bytes than the digest says.
func TestRegistrySwaps(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	swap := ""
	host := newRegistry(t, true, func(w http.ResponseWriter, r *http.Request) bool {
		if swap == "" || !strings.Contains(r.URL.Path, swap) || r.Method != http.MethodGet {
			return false
		}
		w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
		_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`)
		return true
	})
	image := push(t, host)
	if _, err := signer(t, i, p).SignImage(t.Context(), image.String(), client.Registry{}); err != nil {
		t.Fatal(err)
	}
	swap = "/blobs/"
	if _, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{}); err == nil {
		t.Error("a bundle other than the manifest names was believed")
	}
	swap = "/manifests/sha256:"
	if _, err := trust.VerifyImage(t.Context(), image.String(), aliceAt(i), client.Registry{}); err == nil {
		t.Error("a manifest other than the list names was believed")
	}
	if _, err := signer(t, i, p).SignImage(t.Context(), image.String(), client.Registry{}); err == nil {
		t.Error("an image other than the one asked for was signed")
	}
}

func TestVerifyImageCannotTell(t *testing.T) {
	i := clienttest.New(t)
	_, p := pin(t, i)
	trust, err := p.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := "@sha256:" + strings.Repeat("0", 64)
	for image, code := range map[string]int{
		"127.0.0.1:1/app" + digest: cli.ExitFailed,
		"127.0.0.1:1/app:v1":       cli.ExitFailed,
		"UPPER/app" + digest:       cli.ExitUsage,
		"":                         cli.ExitUsage,
	} {
		if _, err := trust.VerifyImage(t.Context(), image, aliceAt(i), client.Registry{}); cli.Code(err) != code {
			t.Errorf("%q: exit code %d: %v", image, cli.Code(err), err)
		}
	}
}
