package ctlog

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	ct "github.com/google/certificate-transparency-go"
	ctclient "github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/google/trillian"
	"github.com/google/trillian/types"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

// Entry is one entry of the log, as far as it says which certificate it is.
type Entry struct {
	Index uint64
	// Hash is the entry's leaf hash in the tree.
	Hash [sha256.Size]byte
	// Serial is the certificate's number, in hexadecimal.
	Serial string
	// Precertificate tells what was logged before issuance from certificates that
	// somebody sent to the log afterwards.
	Precertificate bool
	// TBS is the SHA-256 of what a precertificate's entry holds: the certificate
	// without signature, poison and SCTs. It is empty of a certificate.
	TBS [sha256.Size]byte
	// Certificate is the SHA-256 of a certificate, and empty of a precertificate.
	Certificate [sha256.Size]byte
}

// Source is a log to be read.
type Source interface {
	// head is size and root of the tree.
	head(ctx context.Context) (size uint64, root []byte, err error)
	// leaves are the contents of entries from first on, at least one and at most
	// to the one before end.
	leaves(ctx context.Context, first, end uint64) ([][]byte, error)
}

// ErrContent means that a log's entries are not those that its head stands for.
var ErrContent = errors.New("the ct log's entries do not match its tree head")

// Read hands out every entry of a log in order, and returns its size. When it
// returns without an error, the entries are those that the log's head stands for.
func Read(ctx context.Context, s Source, yield func(Entry) error) (size uint64, err error) {
	size, root, err := s.head(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the ct log's tree head: %w", err)
	}
	tree := (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	for next := uint64(0); next < size; {
		leaves, err := s.leaves(ctx, next, size)
		if err == nil && len(leaves) == 0 {
			err = errors.New("the log gave none")
		}
		if err != nil {
			return size, fmt.Errorf("reading ct log entries from %d: %w", next, err)
		}
		for _, leaf := range leaves {
			e, err := parse(next, leaf)
			if err != nil {
				return size, err
			}
			if err := tree.Append(e.Hash[:], nil); err != nil {
				return size, err
			}
			if err := yield(e); err != nil {
				return size, err
			}
			next++
		}
	}
	computed := rfc6962.DefaultHasher.EmptyRoot()
	if size > 0 {
		if computed, err = tree.GetRootHash(nil); err != nil {
			return size, err
		}
	}
	if string(computed) != string(root) {
		return size, fmt.Errorf("%w: %d entries hash to %x, the head has %x", ErrContent, size, computed, root)
	}
	return size, nil
}

func parse(index uint64, data []byte) (Entry, error) {
	e := Entry{Index: index, Hash: [sha256.Size]byte(rfc6962.DefaultHasher.HashLeaf(data))}
	bad := func(err error) (Entry, error) {
		return e, fmt.Errorf("%w: entry %d is no certificate: %w", ErrContent, index, err)
	}
	var leaf ct.MerkleTreeLeaf
	if rest, err := tls.Unmarshal(data, &leaf); err != nil {
		return bad(err)
	} else if len(rest) > 0 {
		return bad(fmt.Errorf("%d bytes too many", len(rest)))
	}
	var cert *ctx509.Certificate
	var err error
	switch t := leaf.TimestampedEntry; t.EntryType {
	case ct.PrecertLogEntryType:
		e.Precertificate, e.TBS = true, sha256.Sum256(t.PrecertEntry.TBSCertificate)
		cert, err = leaf.Precertificate()
	case ct.X509LogEntryType:
		e.Certificate = sha256.Sum256(t.X509Entry.Data)
		cert, err = leaf.X509Certificate()
	default:
		err = fmt.Errorf("type %v", t.EntryType)
	}
	if ctx509.IsFatal(err) {
		return bad(err)
	}
	e.Serial = cert.SerialNumber.Text(16)
	return e, nil
}

// Stored is a log in a log server's storage.
func Stored(log trillian.TrillianLogClient, treeID int64) Source { return stored{log, treeID} }

type stored struct {
	log trillian.TrillianLogClient
	id  int64
}

func (s stored) head(ctx context.Context) (uint64, []byte, error) {
	resp, err := s.log.GetLatestSignedLogRoot(ctx, &trillian.GetLatestSignedLogRootRequest{LogId: s.id})
	if err != nil {
		return 0, nil, err
	}
	var root types.LogRootV1
	if err := root.UnmarshalBinary(resp.GetSignedLogRoot().GetLogRoot()); err != nil {
		return 0, nil, err
	}
	return root.TreeSize, root.RootHash, nil
}

// batch is how many entries are asked for at a time.
const batch = 1000

func (s stored) leaves(ctx context.Context, first, end uint64) ([][]byte, error) {
	resp, err := s.log.GetLeavesByRange(ctx, &trillian.GetLeavesByRangeRequest{
		LogId: s.id, StartIndex: int64(first), Count: int64(min(end-first, batch)),
	})
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for i, leaf := range resp.GetLeaves() {
		if leaf.GetLeafIndex() != int64(first)+int64(i) {
			return nil, fmt.Errorf("the storage gave entry %d for %d", leaf.GetLeafIndex(), int64(first)+int64(i))
		}
		out = append(out, leaf.GetLeafValue())
	}
	return out, nil
}

// Served is a log that answers below url. Its tree head must be signed with key.
func Served(url string, client *http.Client, key crypto.PublicKey) (Source, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding ct log key: %w", err)
	}
	log, err := ctclient.New(url, client, jsonclient.Options{PublicKeyDER: der})
	if err != nil {
		return nil, fmt.Errorf("ct log at %s: %w", url, err)
	}
	return served{log}, nil
}

type served struct{ log *ctclient.LogClient }

func (s served) head(ctx context.Context) (uint64, []byte, error) {
	sth, err := s.log.GetSTH(ctx) // verifies the signature
	if err != nil {
		return 0, nil, err
	}
	return sth.TreeSize, sth.SHA256RootHash[:], nil
}

func (s served) leaves(ctx context.Context, first, end uint64) ([][]byte, error) {
	resp, err := s.log.GetRawEntries(ctx, int64(first), int64(min(end, first+batch))-1)
	if err != nil {
		return nil, err
	}
	if uint64(len(resp.Entries)) > end-first {
		return nil, fmt.Errorf("%d entries for the %d that were asked for", len(resp.Entries), end-first)
	}
	var out [][]byte
	for _, e := range resp.Entries {
		out = append(out, e.LeafInput)
	}
	return out, nil
}
