package rekor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"sync/atomic"

	"gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"

	"github.com/sigbox/sigbox/services/rekor/store"
)

// bucketScheme names, to upstream, the place where attestations are read.
const bucketScheme = "sigbox-attestations"

// attestations is the store behind the bucket: the mux takes a scheme once per
// process, and services come and go.
var attestations atomic.Pointer[records]

func init() {
	blob.DefaultURLMux().RegisterBucket(bucketScheme, bucketOpener{})
}

type bucketOpener struct{}

func (bucketOpener) OpenBucketURL(context.Context, *url.URL) (*blob.Bucket, error) {
	return blob.NewBucket(bucket{}), nil
}

// bucket lets upstream read attestations. Upstream writes them after it has
// answered and ignores errors, so its writes go nowhere: the service has them on
// disk before the answer.
type bucket struct{}

var errUnsupported = errors.New("attestations can only be read")

func (bucket) Attributes(ctx context.Context, key string) (*driver.Attributes, error) {
	body, err := readAttestation(ctx, key)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{Size: int64(len(body))}, nil
}

func (bucket) NewRangeReader(ctx context.Context, key string, offset, length int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	body, err := readAttestation(ctx, key)
	if err != nil {
		return nil, err
	}
	size := int64(len(body))
	body = body[min(offset, size):]
	if length >= 0 {
		body = body[:min(length, int64(len(body)))]
	}
	return &reader{Reader: bytes.NewReader(body), size: size}, nil
}

func readAttestation(ctx context.Context, key string) ([]byte, error) {
	s := attestations.Load()
	if s == nil {
		return nil, store.ErrClosed
	}
	return (*s).Attestation(ctx, key)
}

type reader struct {
	*bytes.Reader
	size int64
}

func (reader) Close() error { return nil }
func (reader) As(any) bool  { return false }
func (r reader) Attributes() *driver.ReaderAttributes {
	return &driver.ReaderAttributes{Size: r.size}
}

func (bucket) NewTypedWriter(context.Context, string, string, *driver.WriterOptions) (driver.Writer, error) {
	return discard{io.Discard}, nil
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

func (bucket) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return gcerrors.NotFound
	case errors.Is(err, errUnsupported):
		return gcerrors.Unimplemented
	default:
		return gcerrors.Unknown
	}
}

func (bucket) As(any) bool             { return false }
func (bucket) ErrorAs(error, any) bool { return false }
func (bucket) Close() error            { return nil }

func (bucket) ListPaged(context.Context, *driver.ListOptions) (*driver.ListPage, error) {
	return nil, errUnsupported
}

func (bucket) Copy(context.Context, string, string, *driver.CopyOptions) error { return errUnsupported }

func (bucket) Delete(context.Context, string) error { return errUnsupported }

func (bucket) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errUnsupported
}
