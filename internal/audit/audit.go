// Package audit keeps the record of what the instance vouched for: one JSON
// object a line, fsynced before the answer it stands for leaves.
//
// The lines are a chain: each names the SHA-256 of the line before it (all of
// its bytes, the line feed included), so that a line that is changed, removed,
// added or moved breaks the chain there. The chain runs through files of
// bounded size, audit-000001.jsonl and on; each begins with a line that names
// the instance and the file's number, and is never written again once the next
// one is begun. A file beside them remembers how far the chain has come, so that
// lines missing from its end are noticed too.
//
// Requests that arrive together share one write and one fsync.
package audit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Types of events.
const (
	Intended = "intended" // a precertificate will now be sent to the CT log
	Issued   = "issued"   // a certificate
	Refused  = "refused"  // one request for a certificate, or, with a count, many
	Appended = "appended" // an entry in the log
	Started  = "started"  // the instance
	Stopped  = "stopped"

	// About the record itself.
	Segment = "segment" // the first line of each file
	Resumed = "resumed" // it can be written again
)

// Event is what happened.
type Event struct {
	Time    time.Time      `json:"time"` // UTC, in milliseconds; set by Append when zero
	Type    string         `json:"type"`
	Service string         `json:"service"`
	Fields  map[string]any `json:"fields,omitempty"`
}

// Func records an event. It returns after the event is on disk; whoever gets an
// error must withhold what the event stands for.
type Func func(ctx context.Context, e Event) error

// Errors of the record.
var (
	ErrClosed  = errors.New("audit record is closed")
	ErrMissing = errors.New("there is no audit record")
	// ErrDamaged means that the record is not what was written: *ChainError or
	// *HeadError says where.
	ErrDamaged = errors.New("audit record is damaged")
	// ErrStalled means that the disk does not answer.
	ErrStalled = errors.New("audit record: the disk does not answer")
)

const (
	// maxLine bounds a line, in bytes.
	maxLine = 64 << 10
	// maxBatch bounds what one write gathers, in bytes, but for its last line.
	maxBatch = 1 << 20
	// maxSegments is what six digits count.
	maxSegments = 999_999
)

// Sum is the SHA-256 of a line. As text it is hexadecimal.
type Sum [sha256.Size]byte

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText implements encoding.TextMarshaler.
func (s Sum) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Sum) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(s) {
		return fmt.Errorf("%d characters are no SHA-256", len(text))
	}
	_, err := hex.Decode(s[:], text)
	return err
}

// Head is the end of a chain.
type Head struct {
	Seq     uint64 `json:"seq"` // of the last line; the first is 1
	Sum     Sum    `json:"sha256"`
	Segment int    `json:"segment"` // the number of the file that holds it
}

// encode is the event as the chain takes it: a JSON object that a line's start,
// seq and prev, goes before.
func (e Event) encode() ([]byte, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC().Truncate(time.Millisecond)
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encoding audit event: %w", err)
	}
	if len(body) > maxLine-256 {
		return nil, fmt.Errorf("encoding audit event: %d bytes are too many for a line", len(body))
	}
	return body, nil
}

// link appends an encoded event to buf as the line that follows head.
func link(buf, body []byte, head Head) ([]byte, Head) {
	start := len(buf)
	head.Seq++
	buf = fmt.Appendf(buf, `{"seq":%d,"prev":"`, head.Seq)
	buf = hex.AppendEncode(buf, head.Sum[:])
	buf = append(buf, `",`...)
	buf = append(buf, body[1:]...) // without its brace
	buf = append(buf, '\n')
	head.Sum = sha256.Sum256(buf[start:])
	return buf, head
}

// firstLine appends the first line of the file that follows head. Damage is what
// an administrator was told before going on, and empty otherwise.
func firstLine(instance, damage string, head Head) ([]byte, Head, error) {
	head.Segment++
	fields := map[string]any{"instance": instance, "segment": head.Segment}
	if damage != "" {
		fields["damage"] = damage
	}
	body, err := Event{Type: Segment, Service: "audit", Fields: fields}.encode()
	if err != nil {
		return nil, head, err
	}
	line, head := link(nil, body, head)
	return line, head, nil
}
