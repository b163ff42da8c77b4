package rekor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

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

func (discard) Close() error {
	echoes.add(-1)
	return nil
}

// echoes are upstream's writes that are still to come. Upstream starts each in a
// goroutine that nobody waits for and that reads its globals, which the next
// service of the process replaces: Close waits for them.
var echoes = echoCount{changed: make(chan struct{})}

type echoCount struct {
	mu      sync.Mutex
	n       int // negative while a write is here before it is expected
	changed chan struct{}
}

func (e *echoCount) add(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n += n
	close(e.changed)
	e.changed = make(chan struct{})
}

// wait returns once no write is to come, or after a second: an upstream that
// panicked on its way will not come.
func (e *echoCount) wait() {
	timeout := time.NewTimer(time.Second)
	defer timeout.Stop()
	for {
		e.mu.Lock()
		n, changed := e.n, e.changed
		e.mu.Unlock()
		if n <= 0 {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			return
		}
	}
}

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
