package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Format is the version of the file that this program writes.
const Format = 1

// ManifestName is the first part of a file.
const ManifestName = "manifest.json"

// manifestSize is the space kept at the head of a file for the manifest, which is known last. It is enough for some 5,000 parts.
const manifestSize = 1 << 20

// Manifest says what a backup holds.
type Manifest struct {
	Format   int    `json:"format"`
	Version  string `json:"version"`  // of the program that made it
	Instance string `json:"instance"` // id
	Schema   int    `json:"schema"`   // of the instance's folder
	Epoch    int    `json:"epoch"`
	URL      string `json:"url"`
	// Began is when the backup began: what was acknowledged before is in it.
	Began    time.Time `json:"began"`
	Finished time.Time `json:"finished"`
	WithKeys bool      `json:"with_keys"`
	Logs     []Log     `json:"logs"`
	Index    Index     `json:"index"`
	Parts    []Part    `json:"parts"`
	// Checksum is the SHA-256 of this manifest without it.
	Checksum string `json:"checksum,omitempty"`
}

// Log is the state of a log in a backup.
type Log struct {
	Name      string `json:"name"`
	Tree      int64  `json:"tree_id"`
	Size      uint64 `json:"size"`
	Root      string `json:"root"` // hexadecimal
	Timestamp uint64 `json:"timestamp"`
	// Description is Trillian's own of the tree, a protobuf message.
	Description []byte `json:"description"`
}

// Index counts what of the search index is in a backup.
type Index struct {
	Rows         int `json:"rows"`
	Attestations int `json:"attestations"`
}

// Part is a file inside a backup.
type Part struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Log finds a log by its tree.
func (m *Manifest) Log(tree int64) (Log, bool) {
	for _, l := range m.Logs {
		if l.Tree == tree {
			return l, true
		}
	}
	return Log{}, false
}

// encode makes the manifest's bytes, as many as were kept for it.
func (m Manifest) encode() ([]byte, error) {
	m.Checksum = ""
	data, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	m.Checksum = hex.EncodeToString(sum[:])
	if data, err = json.Marshal(m); err != nil {
		return nil, err
	}
	if len(data) >= manifestSize {
		return nil, fmt.Errorf("a manifest of %d parts does not fit", len(m.Parts))
	}
	return append(data, bytes.Repeat([]byte{'\n'}, manifestSize-len(data))...), nil
}

func parseManifest(data []byte) (m Manifest, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("reading the manifest: %w: %w", ErrDamaged, err)
	}
	if m.Format > Format {
		return m, fmt.Errorf("format %d, this one reads %d: %w", m.Format, Format, ErrNewer)
	}
	again, err := m.encode()
	if err != nil {
		return m, err
	}
	if !bytes.Equal(again, data) {
		return m, fmt.Errorf("the manifest: %w", ErrDamaged)
	}
	if m.Format < 1 || m.Instance == "" || len(m.Logs) == 0 {
		return m, errors.New("the manifest says too little")
	}
	return m, nil
}
