package anchor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sigbox/sigbox/internal/durable"
)

func epochPath(dir string) string { return filepath.Join(dir, "epoch") }

// Epoch is how often the instance that the folder belongs to was restored; zero if never. Whoever has been restored less often has been replaced.
func Epoch(dir string) (int, error) {
	data, err := os.ReadFile(epochPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, fmt.Errorf("reading the epoch beside the anchors: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%s: %w", epochPath(dir), ErrDamaged)
	}
	return n, nil
}

// SetEpoch is durable when it returns.
func SetEpoch(dir string, n int) error {
	if err := durable.WriteFile(epochPath(dir), fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
		return fmt.Errorf("writing the epoch beside the anchors: %w", err)
	}
	return nil
}
