package faults

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/root"
)

// The Merkle tree of RFC 6962 section 2.1, written here once more so that the
// judge shares no code with who is judged.

func leafHash(data []byte) [32]byte { return sha256.Sum256(append([]byte{0}, data...)) }

func nodeHash(left, right [32]byte) [32]byte {
	return sha256.Sum256(append(append([]byte{1}, left[:]...), right[:]...))
}

// rootsOf is the root of a log at every size, from no leaves to all.
func rootsOf(leaves [][32]byte) [][32]byte {
	type peak struct {
		leaves int // a power of two
		hash   [32]byte
	}
	var peaks []peak
	roots := [][32]byte{sha256.Sum256(nil)}
	for _, leaf := range leaves {
		peaks = append(peaks, peak{1, leaf})
		for n := len(peaks); n > 1 && peaks[n-2].leaves == peaks[n-1].leaves; n = len(peaks) {
			peaks = append(peaks[:n-2], peak{2 * peaks[n-1].leaves, nodeHash(peaks[n-2].hash, peaks[n-1].hash)})
		}
		r := peaks[len(peaks)-1].hash
		for i := len(peaks) - 2; i >= 0; i-- {
			r = nodeHash(peaks[i].hash, r)
		}
		roots = append(roots, r)
	}
	return roots
}

// A head is a signed tree head whose signature was verified.
type head struct {
	log  string
	size uint64
	root [32]byte
}

// A forgery is a tree head that its log has not signed.
type forgery struct{ what string }

func (f *forgery) Error() string { return f.what }

// logKeys verify what the two logs sign.
type logKeys struct{ rekor, ct *ecdsa.PublicKey }

func newLogKeys(trustedRoot []byte) (*logKeys, error) {
	material, err := root.NewTrustedRootFromJSON(trustedRoot)
	if err != nil {
		return nil, err
	}
	only := func(logs map[string]*root.TransparencyLog) (*ecdsa.PublicKey, error) {
		for _, l := range logs {
			if key, ok := l.PublicKey.(*ecdsa.PublicKey); ok && len(logs) == 1 {
				return key, nil
			}
		}
		return nil, fmt.Errorf("not one log with an ECDSA key, but %d", len(logs))
	}
	k := new(logKeys)
	if k.rekor, err = only(material.RekorLogs()); err != nil {
		return nil, err
	}
	k.ct, err = only(material.CTLogs())
	return k, err
}

// checkpoint reads and verifies a signed note: origin, size, root.
func (k *logKeys) checkpoint(note string) (head, error) {
	const log = "rekor"
	text, signatures, ok := strings.Cut(note, "\n\n")
	lines := strings.Split(text, "\n")
	fields := strings.Fields(signatures)
	if !ok || len(lines) < 3 || len(fields) < 3 {
		return head{}, &forgery{fmt.Sprintf("not a checkpoint: %q", note)}
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil {
		return head{}, &forgery{err.Error()}
	}
	hash, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(hash) != sha256.Size {
		return head{}, &forgery{fmt.Sprintf("not a root: %q", lines[2])}
	}
	sig, err := base64.StdEncoding.DecodeString(fields[2])
	sum := sha256.Sum256([]byte(text + "\n"))
	if err != nil || len(sig) < 4 || !ecdsa.VerifyASN1(k.rekor, sum[:], sig[4:]) {
		return head{}, &forgery{fmt.Sprintf("%s has not signed the checkpoint of size %d", log, size)}
	}
	return head{log, size, [32]byte(hash)}, nil
}

// rekorHead is the checkpoint that Rekor answers now.
func rekorHead(ctx context.Context, c *http.Client, url string, keys *logKeys) (head, error) {
	var info struct {
		Checkpoint string `json:"signedTreeHead"`
	}
	if err := getJSON(ctx, c, url+"/api/v1/log", &info); err != nil {
		return head{}, err
	}
	return keys.checkpoint(info.Checkpoint)
}

// ctHead is the tree head that the CT log answers now (RFC 6962 section 4.3),
// its signature verified (section 3.5).
func ctHead(ctx context.Context, c *http.Client, url string, keys *logKeys) (head, error) {
	const log = "ct log"
	var sth struct {
		Size      uint64 `json:"tree_size"`
		Timestamp uint64 `json:"timestamp"` // milliseconds since 1970
		Root      []byte `json:"sha256_root_hash"`
		Signature []byte `json:"tree_head_signature"`
	}
	if err := getJSON(ctx, c, url+"/ctlog/ct/v1/get-sth", &sth); err != nil {
		return head{}, err
	}
	const version, treeHash = 0, 1
	signed := []byte{version, treeHash}
	signed = binary.BigEndian.AppendUint64(signed, sth.Timestamp)
	signed = binary.BigEndian.AppendUint64(signed, sth.Size)
	sum := sha256.Sum256(append(signed, sth.Root...))
	// Two bytes of algorithms and two of length come before the signature
	// (RFC 5246 section 4.7).
	if len(sth.Root) != sha256.Size || len(sth.Signature) < 4 || !ecdsa.VerifyASN1(keys.ct, sum[:], sth.Signature[4:]) {
		return head{}, &forgery{fmt.Sprintf("%s has not signed the head of size %d", log, sth.Size)}
	}
	return head{log, sth.Size, [32]byte(sth.Root)}, nil
}
