package e2etest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// An Image is one in a registry.
type Image struct {
	Repository string // HOST:PORT/NAME
	Digest     v1.Hash
	image      v1.Image
}

// Ref names the image by digest, as it is to be signed.
func (i Image) Ref() string { return i.Repository + "@" + i.Digest.String() }

func (i Image) digest(t testing.TB) name.Digest {
	t.Helper()
	d, err := name.NewDigest(i.Ref())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Push makes an image FROM scratch with one file in it and pushes it.
func (r *Registry) Push(t testing.TB, repository, content string) Image {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o755, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, content)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := static.NewLayer(layer.Bytes(), types.OCIUncompressedLayer)
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, l)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/hello"}}); err != nil {
		t.Fatal(err)
	}
	return r.put(t, repository, img)
}

func (r *Registry) put(t testing.TB, repository string, img v1.Image) Image {
	t.Helper()
	hash, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	i := Image{Repository: r.Address + "/" + repository, Digest: hash, image: img}
	tag, err := name.NewTag(i.Repository + ":v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(i.digest(t), img); err != nil {
		t.Fatal(err)
	}
	return i
}

// CopySignatures copies the image to another repository together with all that
// is attached to it, in either form: OCI 1.1 referrers, and the tags .sig and
// .att of cosign before bundles. Each attached JSON document passes through
// change first; onto names the image it is attached to there, the same one
// when nil.
func (r *Registry) CopySignatures(t testing.TB, from Image, repository string, onto *Image, change func([]byte) []byte) Image {
	t.Helper()
	to := r.put(t, repository, from.image)
	if onto != nil {
		to = r.put(t, repository, onto.image)
	}
	copied := 0
	index, err := remote.Referrers(from.digest(t))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range manifest.Manifests {
		copied += r.copyReferrer(t, from, to, d, change)
	}
	for _, suffix := range []string{"sig", "att"} {
		copied += r.copyTagged(t, from, to, suffix, change)
	}
	if copied == 0 {
		t.Fatalf("nothing is attached to %s", from.Ref())
	}
	return to
}

func (r *Registry) copyReferrer(t testing.TB, from, to Image, d v1.Descriptor, change func([]byte) []byte) int {
	t.Helper()
	ref, err := name.NewDigest(from.Repository + "@" + d.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	repo := to.digest(t).Context()
	for n, l := range layers {
		mt, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		changed := static.NewLayer(change(content(t, l)), mt)
		if err := remote.WriteLayer(repo, changed); err != nil {
			t.Fatal(err)
		}
		h, _ := changed.Digest()
		size, _ := changed.Size()
		desc := m["layers"].([]any)[n].(map[string]any)
		desc["digest"], desc["size"] = h.String(), size
	}
	config, err := partial.ConfigLayer(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteLayer(repo, config); err != nil {
		t.Fatal(err)
	}
	subject, err := partial.Descriptor(to.image)
	if err != nil {
		t.Fatal(err)
	}
	m["subject"] = map[string]any{"mediaType": subject.MediaType, "digest": to.Digest.String(), "size": subject.Size}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := v1.SHA256(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	target, err := name.NewDigest(to.Repository + "@" + h.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(target, rawManifest{out, types.MediaType(m["mediaType"].(string))}); err != nil {
		t.Fatal(err)
	}
	return 1
}

func (r *Registry) copyTagged(t testing.TB, from, to Image, suffix string, change func([]byte) []byte) int {
	t.Helper()
	tag := func(i Image) name.Tag {
		tag, err := name.NewTag(i.Repository + ":" + strings.Replace(i.Digest.String(), ":", "-", 1) + "." + suffix)
		if err != nil {
			t.Fatal(err)
		}
		return tag
	}
	img, err := remote.Image(tag(from))
	if err != nil {
		return 0 // no such tag
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	out := mutate.MediaType(empty.Image, m.MediaType)
	out = mutate.ConfigMediaType(out, m.Config.MediaType)
	for n, l := range layers {
		data, annotations := content(t, l), maps.Clone(m.Layers[n].Annotations)
		// The signature over a plain payload lies beside it, in an annotation;
		// an attestation's is inside.
		if sig, ok := annotations["dev.cosignproject.cosign/signature"]; ok && sig != "" {
			annotations["dev.cosignproject.cosign/signature"] = string(change([]byte(sig)))
		} else {
			data = change(data)
		}
		mt, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		if out, err = mutate.Append(out, mutate.Addendum{Layer: static.NewLayer(data, mt), Annotations: annotations}); err != nil {
			t.Fatal(err)
		}
	}
	if err := remote.Write(tag(to), out); err != nil {
		t.Fatal(err)
	}
	return 1
}

// rawManifest is a manifest as bytes, which remote.Put takes.
type rawManifest struct {
	data      []byte
	mediaType types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.data, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }

func content(t testing.TB, l v1.Layer) []byte {
	t.Helper()
	r, err := l.Compressed() // the bytes as the registry has them
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
