package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// unchainedName is the record's file as a development version wrote it.
const unchainedName = "audit.jsonl"

func segmentName(n int) string { return fmt.Sprintf("audit-%06d.jsonl", n) }

func segmentNumber(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "audit-")
	if !ok {
		return 0, false
	}
	if digits, ok = strings.CutSuffix(digits, ".jsonl"); !ok || len(digits) != 6 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return int(n), err == nil && n > 0
}

// segments is the number of the last file in dir, and those before it that are
// missing.
func segments(dir string) (last int, missing []int, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, fmt.Errorf("%w in %s", ErrMissing, dir)
	}
	if err != nil {
		return 0, nil, fmt.Errorf("reading audit record: %w", err)
	}
	unchained := false
	there := map[int]bool{}
	for _, e := range entries {
		if n, ok := segmentNumber(e.Name()); ok {
			there[n], last = true, max(last, n)
		}
		unchained = unchained || e.Name() == unchainedName
	}
	switch {
	case last == 0 && unchained:
		return 0, nil, fmt.Errorf("%w in %s: %s was written by a development version, without a chain, and cannot be continued", ErrMissing, dir, unchainedName)
	case last == 0:
		return 0, nil, fmt.Errorf("%w in %s", ErrMissing, dir)
	}
	for n := 1; n < last; n++ {
		if !there[n] {
			missing = append(missing, n)
		}
	}
	return last, missing, nil
}

func segmentPath(dir string, n int) string { return filepath.Join(dir, segmentName(n)) }

func missingSegment(n int) *ChainError {
	return &ChainError{File: segmentName(n), Reason: "the file is missing"}
}

// ChainError says where the chain is broken. It wraps ErrDamaged.
type ChainError struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"` // the first is 1; 0 means the whole file
	Seq    uint64 `json:"seq,omitempty"`  // that the line should have
	Reason string `json:"reason"`
}

func (e *ChainError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%v: %s: %s", ErrDamaged, e.File, e.Reason)
	}
	return fmt.Sprintf("%v: %s line %d: %s", ErrDamaged, e.File, e.Line, e.Reason)
}

func (e *ChainError) Unwrap() error { return ErrDamaged }
