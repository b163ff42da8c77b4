package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/sigbox/sigbox/internal/durable"
)

// headName is the file that remembers how far the chain has come.
const headName = "head.json"

func headPath(dir string) string { return filepath.Join(dir, headName) }

// HeadError means that the chain does not contain what it is known to have
// contained. It wraps ErrDamaged.
type HeadError struct {
	Recorded *Head  `json:"recorded,omitempty"` // nil: nothing is known
	Found    Head   `json:"found"`              // the last line
	Reason   string `json:"reason"`
}

func (e *HeadError) Error() string { return fmt.Sprintf("%v: %s", ErrDamaged, e.Reason) }
func (e *HeadError) Unwrap() error { return ErrDamaged }

// readHead fails with a *HeadError if there is none to be had.
func readHead(path string) (Head, error) {
	var h Head
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, &HeadError{Reason: filepath.Base(path) + " is missing: lines may be missing from the end of the record"}
	}
	if err != nil {
		return h, fmt.Errorf("reading the audit record's head: %w", err)
	}
	if err := json.Unmarshal(data, &h); err != nil || h.Seq == 0 || h.Segment == 0 {
		return h, &HeadError{Reason: filepath.Base(path) + " is damaged"}
	}
	return h, nil
}

func encodeHead(h Head) ([]byte, error) {
	data, err := json.Marshal(h)
	return append(data, '\n'), err
}

// writeHead replaces the file.
func writeHead(path string, h Head) error {
	data, err := encodeHead(h)
	if err == nil {
		err = durable.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("writing the audit record's head: %w", err)
	}
	return nil
}

// headMismatch says what is wrong with a chain that ends at found and does not
// contain recorded.
func headMismatch(recorded, found Head) error {
	e := &HeadError{Recorded: &recorded, Found: found}
	if recorded.Seq > found.Seq {
		e.Reason = fmt.Sprintf("it ends with line %d, but had %d: lines are missing from its end", found.Seq, recorded.Seq)
	} else {
		e.Reason = fmt.Sprintf("line %d is not the one that was written", recorded.Seq)
	}
	return e
}
