package client

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	registry "github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

const (
	// signPredicate marks a statement as a signature of its subject, as cosign
	// v3 does.
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
	statementType = "https://in-toto.io/Statement/v1"

	// Annotations of the manifest that carries a bundle, as cosign v3 writes them.
	annotationCreated   = "org.opencontainers.image.created"
	annotationContent   = "dev.sigstore.bundle.content"
	annotationPredicate = "dev.sigstore.bundle.predicateType"

	bundlePrefix   = "application/vnd.dev.sigstore.bundle"
	emptyMediaType = types.MediaType("application/vnd.oci.empty.v1+json")

	// maxSignatures bounds how many signatures of an image are looked at, and
	// maxSignature how large one may be, since whoever may push may add them.
	maxSignatures = 100
	maxSignature  = 1 << 20
	// maxListing is how often a pushed signature is looked for in the list of an
	// image's referrers, which two writers at once can overwrite.
	maxListing = 5
)

// Registry says how registries are reached.
type Registry struct {
	// PlainHTTP allows a registry without TLS. Registries on this machine need
	// no such leave.
	PlainHTTP bool
	// CA are certificates in PEM form that vouch for a registry's TLS, besides
	// those of the system.
	CA []byte
}

func (r Registry) parse(image string) (name.Reference, error) {
	opts := []name.Option{name.WithDefaultTag("latest")}
	if r.PlainHTTP {
		opts = append(opts, name.Insecure)
	}
	ref, err := name.ParseReference(image, opts...)
	if err != nil {
		return nil, cli.Usage("%w", err)
	}
	return ref, nil
}

func (r Registry) options(ctx context.Context) ([]remote.Option, error) {
	base, err := newBase(r.CA)
	if err != nil {
		return nil, cli.Usage("registry: %w", err)
	}
	return []remote.Option{
		remote.WithContext(ctx),
		remote.WithTransport(base),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
	}, nil
}

// SignedImage is an image's signature and where it was put.
type SignedImage struct {
	Signed
	Image     string `json:"image"`     // with its digest
	Reference string `json:"reference"` // of the manifest that carries the signature
}

// SignImage signs an image by its digest and attaches the bundle to it as an OCI
// 1.1 referrer, which cosign v3 finds; where the registry does not list
// referrers itself, in the index that stands in for the list (distribution
// spec 1.1, referrers tag schema). A reference without digest is refused: what
// a tag means can change between looking and signing.
func (s *Signer) SignImage(ctx context.Context, image string, r Registry) (*SignedImage, error) {
	ref, err := r.parse(image)
	if err != nil {
		return nil, err
	}
	opts, err := r.options(ctx)
	if err != nil {
		return nil, err
	}
	digest, ok := ref.(name.Digest)
	if !ok {
		err := cli.Usage("%s names no digest, and a tag can change while it is signed", image)
		if desc, headErr := remote.Head(ref, opts...); headErr == nil {
			return nil, cli.Hint(err, "sigbox sign %s@%s", ref.Context(), desc.Digest)
		}
		return nil, cli.Hint(err, "sigbox sign %s@sha256:…", ref.Context())
	}
	// Fetching by digest compares what came with what was asked for.
	subject, err := remote.Get(digest, opts...)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", digest, err)
	}
	raw, err := hexDigest(digest)
	if err != nil {
		return nil, err
	}
	statement, err := json.Marshal(map[string]any{
		"_type":         statementType,
		"subject":       []any{map[string]any{"digest": map[string]string{"sha256": hex.EncodeToString(raw)}}},
		"predicateType": signPredicate,
		"predicate":     map[string]any{},
	})
	if err != nil {
		return nil, err
	}
	signed, err := s.signStatement(ctx, statement, raw)
	if err != nil {
		return nil, err
	}
	where, err := attach(digest, subject.Descriptor, signed.Bundle, opts)
	if err != nil {
		return nil, fmt.Errorf("attaching the signature to %s: %w", digest, err)
	}
	return &SignedImage{Signed: *signed, Image: digest.String(), Reference: where.String()}, nil
}

func hexDigest(d name.Digest) ([]byte, error) {
	text, ok := strings.CutPrefix(d.DigestStr(), "sha256:")
	if !ok {
		return nil, cli.Usage("%s: only sha256 digests can be signed and verified", d)
	}
	raw, err := hex.DecodeString(text)
	if err != nil {
		return nil, cli.Usage("%s: %w", d, err)
	}
	return raw, nil
}

// manifest is what carries a bundle. It is written as it is, since the image
// types of go-containerregistry would add a configuration of their own.
type manifest []byte

func (m manifest) RawManifest() ([]byte, error)        { return m, nil }
func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func attach(image name.Digest, subject v1.Descriptor, data []byte, opts []remote.Option) (name.Digest, error) {
	bundleLayer := static.NewLayer(data, bundleMediaType)
	configLayer := static.NewLayer([]byte("{}"), emptyMediaType)
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  bundleMediaType,
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size},
		Annotations: map[string]string{
			annotationCreated:   time.Now().UTC().Format(time.RFC3339),
			annotationContent:   "dsse-envelope",
			annotationPredicate: signPredicate,
		},
	}
	for _, l := range []struct {
		v1.Layer
		into func(v1.Descriptor)
	}{
		{configLayer, func(d v1.Descriptor) { m.Config = d }},
		{bundleLayer, func(d v1.Descriptor) { m.Layers = append(m.Layers, d) }},
	} {
		d, err := describe(l)
		if err != nil {
			return name.Digest{}, err
		}
		l.into(d)
		if err := remote.WriteLayer(image.Context(), l.Layer, opts...); err != nil {
			return name.Digest{}, err
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return name.Digest{}, err
	}
	sum, _, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return name.Digest{}, err
	}
	where := image.Context().Digest(sum.String())
	for range maxListing {
		if err := remote.Put(where, manifest(raw), opts...); err != nil {
			return name.Digest{}, err
		}
		// Where the list is an index that clients rewrite, another writer may have
		// dropped this entry just now.
		list, err := referrers(image, opts)
		if err != nil {
			return name.Digest{}, err
		}
		for _, d := range list {
			if d.Digest == sum {
				return where, nil
			}
		}
	}
	return name.Digest{}, fmt.Errorf("the registry does not list the signature it accepted (%s)", where)
}

func describe(l v1.Layer) (v1.Descriptor, error) {
	mediaType, err := l.MediaType()
	if err != nil {
		return v1.Descriptor{}, err
	}
	digest, err := l.Digest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	size, err := l.Size()
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaType, Digest: digest, Size: size}, nil
}

func referrers(image name.Digest, opts []remote.Option) ([]v1.Descriptor, error) {
	index, err := remote.Referrers(image, opts...)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	return m.Manifests, nil
}

// VerifiedImage is an image and the signature of it that verified.
type VerifiedImage struct {
	Verified
	Image     string `json:"image"`     // with the digest that was verified
	Reference string `json:"reference"` // of the manifest that carries the signature
}

// VerifyImage verifies that the identity signed the image: one signature that
// holds is enough. A tag is resolved first, and the answer names the digest to
// which it applies.
//
// A "no" has exit code 3 (cli.No) and lists why each signature was refused; any
// other error means that it could not be told.
func (t *Trust) VerifyImage(ctx context.Context, image string, id Identity, r Registry) (*VerifiedImage, error) {
	identity, err := id.policy()
	if err != nil {
		return nil, err
	}
	ref, err := r.parse(image)
	if err != nil {
		return nil, err
	}
	opts, err := r.options(ctx)
	if err != nil {
		return nil, err
	}
	digest, ok := ref.(name.Digest)
	if !ok {
		desc, err := remote.Get(ref, opts...)
		if err != nil {
			return nil, fmt.Errorf("resolving %s: %w", image, err)
		}
		digest = ref.Context().Digest(desc.Digest.String())
	}
	raw, err := hexDigest(digest)
	if err != nil {
		return nil, err
	}
	list, err := referrers(digest, opts)
	if err != nil {
		return nil, fmt.Errorf("listing the signatures of %s: %w", digest, err)
	}
	var refused []error
	seen, unread := 0, false
	for _, d := range list {
		if !mayBeSignature(d) {
			continue
		}
		if seen++; seen > maxSignatures {
			return nil, fmt.Errorf("%s has more than %d signatures, and none of those looked at verifies: %w",
				digest, maxSignatures, errors.Join(plain(refused)...))
		}
		where := digest.Context().Digest(d.Digest.String())
		v, err := t.verifyReferrer(where, raw, verify.WithCertificateIdentity(identity), opts)
		if err == nil {
			return &VerifiedImage{Verified: *v, Image: digest.String(), Reference: where.String()}, nil
		}
		// One that cannot be read must not keep the others from being looked at.
		unread = unread || cli.Code(err) != cli.ExitNo
		refused = append(refused, fmt.Errorf("signature %s: %w", d.Digest, err))
	}
	if unread {
		return nil, fmt.Errorf("not every signature of %s could be read, and no other verifies: %w", digest, errors.Join(plain(refused)...))
	}
	if len(refused) > 0 {
		return nil, cli.No("no signature of %s verifies: %w", digest, errors.Join(plain(refused)...))
	}
	no := cli.No("%s has no signature", digest)
	if hasLegacy(digest, opts) {
		return nil, cli.Hint(no, "it has one in the format of cosign v2, which carries no proof of inclusion: sigbox exec -- cosign verify …")
	}
	return nil, no
}

// plain drops the exit codes of several errors, so that the joined one has its own.
func plain(errs []error) []error {
	out := make([]error, len(errs))
	for i, err := range errs {
		out[i] = errors.New(err.Error())
	}
	return out
}

// mayBeSignature drops referrers that say of themselves that they are something
// else. It only saves work: what remains is verified whatever it says.
func mayBeSignature(d v1.Descriptor) bool {
	if d.ArtifactType != "" && !strings.HasPrefix(d.ArtifactType, bundlePrefix) && d.ArtifactType != string(emptyMediaType) {
		return false
	}
	predicate, ok := d.Annotations[annotationPredicate]
	return !ok || predicate == signPredicate
}

// verifyReferrer verifies the bundle in one manifest.
func (t *Trust) verifyReferrer(where name.Digest, artifact []byte, identity verify.PolicyOption, opts []remote.Option) (*Verified, error) {
	img, err := remote.Image(where, opts...)
	if err != nil {
		return nil, gone(err)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, cli.No("its manifest: %w", err)
	}
	if len(layers) != 1 {
		return nil, cli.No("it has %d layers instead of one bundle", len(layers))
	}
	mediaType, err := layers[0].MediaType()
	if err != nil || !strings.HasPrefix(string(mediaType), bundlePrefix) {
		return nil, cli.No("it is no Sigstore bundle: %q", mediaType)
	}
	if size, err := layers[0].Size(); err != nil || size > maxSignature {
		return nil, cli.No("it is larger than %d bytes", maxSignature)
	}
	// The layer's digest is compared while it is read.
	body, err := layers[0].Compressed()
	if err != nil {
		return nil, gone(err)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxSignature+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSignature {
		return nil, cli.No("it is larger than %d bytes", maxSignature)
	}
	b, err := ParseBundle(data)
	if err != nil {
		return nil, err
	}
	if b.GetDsseEnvelope() == nil || b.GetDsseEnvelope().GetPayloadType() != inTotoType {
		return nil, cli.No("it holds no in-toto statement")
	}
	v, err := t.verify(b, verify.WithArtifactDigest("sha256", artifact), identity)
	if err != nil {
		return nil, err
	}
	// An attestation about the image is signed too, but may well say that the
	// image is bad.
	if v.PredicateType != signPredicate {
		return nil, cli.No("it is an attestation of type %q, not a signature", v.PredicateType)
	}
	return v, nil
}

// gone makes a listed signature that is not there a "no": it cannot be trusted,
// and others must still be looked at.
func gone(err error) error {
	var status *registry.Error
	if errors.As(err, &status) && status.StatusCode == http.StatusNotFound {
		return cli.No("the registry lists it but does not have it")
	}
	return err
}

// hasLegacy looks for a signature under the tag of cosign v2.
func hasLegacy(image name.Digest, opts []remote.Option) bool {
	tag := image.Context().Tag(strings.Replace(image.DigestStr(), ":", "-", 1) + ".sig")
	_, err := remote.Head(tag, opts...)
	return err == nil
}
