package durability

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"testing"
)

// onRecord finds every certificate that a client got in the audit record, and
// the record and the certificate transparency log in agreement.
func (l *ledger) onRecord(t *testing.T) {
	t.Helper()
	sigboxd := l.instance.Sigboxd()
	var report struct {
		Same   bool
		Issued int
	}
	out := sigboxd.OK(t, "audit", "verify", "--dir", l.instance.Dir, "--json")
	if err := json.Unmarshal([]byte(out.Stdout), &report); err != nil || !report.Same || report.Issued < len(l.signed) {
		t.Fatalf("%d certificates acknowledged, the record: %s, %v", len(l.signed), out.Stdout, err)
	}
	issued := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader([]byte(sigboxd.OK(t, "audit", "export", "--dir", l.instance.Dir, "--type", "issued").Stdout)))
	for lines.Scan() {
		var record struct{ Fields struct{ SHA256 string } }
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			t.Fatalf("%v: %s", err, lines.Bytes())
		}
		issued[record.Fields.SHA256] = true
	}
	for _, s := range l.signed {
		if sum := sha256.Sum256(s.Certificate); !issued[hex.EncodeToString(sum[:])] {
			t.Fatalf("certificate %x left without a record", sum)
		}
	}
}
