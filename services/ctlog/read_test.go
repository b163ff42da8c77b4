package ctlog_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net/http"
	"testing"

	"github.com/google/trillian"
	"google.golang.org/grpc"

	"github.com/sigbox/sigbox/services/ctlog"
)

func (l *log) add(t testing.TB, path string, chain [][]byte) {
	t.Helper()
	if code, out, _ := l.post("/ct/v1/"+path, submission(chain...)); code != http.StatusOK {
		t.Fatalf("%s: %d %s", path, code, out)
	}
}

func entries(t *testing.T, s ctlog.Source) []ctlog.Entry {
	t.Helper()
	var all []ctlog.Entry
	size, err := ctlog.Read(t.Context(), s, func(e ctlog.Entry) error {
		all = append(all, e)
		return nil
	})
	if err != nil || size != uint64(len(all)) {
		t.Fatalf("%d entries of %d: %v", len(all), size, err)
	}
	return all
}

// TestRead: served or from storage, the entries are the same, and those that
// were submitted.
func TestRead(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	l := newLog(t, c, server, id)
	served, err := ctlog.Served(l.url, http.DefaultClient, l.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	stored := ctlog.Stored(server, id)
	if len(entries(t, served)) != 0 || len(entries(t, stored)) != 0 {
		t.Error("an empty log has entries")
	}
	pre, final := c.leaf(x509.ExtKeyUsageCodeSigning, poison), c.leaf(x509.ExtKeyUsageCodeSigning)
	for path, leaf := range map[string][]byte{"add-pre-chain": pre, "add-chain": final} {
		l.add(t, path, c.chain(leaf))
	}
	from := map[string][]ctlog.Entry{"served": entries(t, served), "stored": entries(t, stored)}
	for name, all := range from {
		if len(all) != 2 || all[0] != from["stored"][0] || all[1] != from["stored"][1] {
			t.Fatalf("%s: %+v", name, all)
		}
		for _, e := range all {
			want := final
			if e.Precertificate {
				want = pre
			} else if e.Certificate != sha256.Sum256(final) {
				t.Errorf("%s: certificate %x", name, e.Certificate)
			}
			cert, err := x509.ParseCertificate(want)
			if err != nil {
				t.Fatal(err)
			}
			n, ok := new(big.Int).SetString(e.Serial, 16)
			if !ok || n.Cmp(cert.SerialNumber) != 0 {
				t.Errorf("%s: serial %s, want %s", name, e.Serial, cert.SerialNumber)
			}
		}
	}
	if _, err := ctlog.Read(t.Context(), stored, func(ctlog.Entry) error { return io.ErrClosedPipe }); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the reader's error: %v", err)
	}
	// Another's key.
	other, err := ctlog.Served(l.url, http.DefaultClient, newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ctlog.Read(t.Context(), other, func(ctlog.Entry) error { return nil }); err == nil {
		t.Error("a tree head that the log did not sign was believed")
	}
}

// altered is a log server whose entries somebody has edited.
type altered struct {
	trillian.TrillianLogClient
	edit func(leaves []*trillian.LogLeaf) []*trillian.LogLeaf
}

func (a altered) GetLeavesByRange(ctx context.Context, in *trillian.GetLeavesByRangeRequest, opts ...grpc.CallOption) (*trillian.GetLeavesByRangeResponse, error) {
	resp, err := a.TrillianLogClient.GetLeavesByRange(ctx, in, opts...)
	if err != nil {
		return nil, err
	}
	var leaves []*trillian.LogLeaf
	for _, l := range resp.Leaves {
		leaves = append(leaves, &trillian.LogLeaf{LeafIndex: l.LeafIndex, LeafValue: append([]byte(nil), l.LeafValue...)})
	}
	return &trillian.GetLeavesByRangeResponse{Leaves: a.edit(leaves)}, nil
}

// TestReadFindsWhatIsNotTheLog.
func TestReadFindsWhatIsNotTheLog(t *testing.T) {
	c := newCA(t)
	server, id := logServer(t)
	l := newLog(t, c, server, id)
	for range 3 {
		l.add(t, "add-pre-chain", c.chain(c.leaf(x509.ExtKeyUsageCodeSigning, poison)))
	}
	type leaves = []*trillian.LogLeaf
	for name, edit := range map[string]func(leaves) leaves{
		"a bit of a timestamp": func(l leaves) leaves { l[1].LeafValue[9] ^= 1; return l },
		"cut":                  func(l leaves) leaves { l[1].LeafValue = l[1].LeafValue[:20]; return l },
		"empty":                func(l leaves) leaves { l[1].LeafValue = nil; return l },
		"more":                 func(l leaves) leaves { l[1].LeafValue = append(l[1].LeafValue, 0); return l },
		"swapped":              func(l leaves) leaves { l[0].LeafValue, l[1].LeafValue = l[1].LeafValue, l[0].LeafValue; return l },
		"renumbered":           func(l leaves) leaves { l[0], l[1] = l[1], l[0]; return l },
		"none":                 func(leaves) leaves { return nil },
	} {
		_, err := ctlog.Read(t.Context(), ctlog.Stored(altered{server, edit}, id), func(ctlog.Entry) error { return nil })
		if err == nil {
			t.Errorf("%s: was read", name)
		} else if name != "none" && name != "renumbered" && !errors.Is(err, ctlog.ErrContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRead: whatever a log serves as an entry.
func FuzzRead(f *testing.F) {
	c := newCA(f)
	server, id := logServer(f)
	l := newLog(f, c, server, id)
	l.add(f, "add-pre-chain", c.chain(c.leaf(x509.ExtKeyUsageCodeSigning, poison)))
	l.add(f, "add-chain", c.chain(c.leaf(x509.ExtKeyUsageCodeSigning)))
	resp, err := server.GetLeavesByRange(context.Background(), &trillian.GetLeavesByRangeRequest{LogId: id, Count: 2})
	if err != nil {
		f.Fatal(err)
	}
	for _, leaf := range resp.Leaves {
		f.Add(leaf.LeafValue)
	}
	f.Fuzz(func(t *testing.T, leaf []byte) {
		s := ctlog.Stored(altered{server, func(l []*trillian.LogLeaf) []*trillian.LogLeaf {
			for i := range l {
				l[i].LeafValue = leaf
			}
			return l
		}}, id)
		if _, err := ctlog.Read(t.Context(), s, func(ctlog.Entry) error { return nil }); !errors.Is(err, ctlog.ErrContent) {
			t.Errorf("two entries alike: %v", err)
		}
	})
}
