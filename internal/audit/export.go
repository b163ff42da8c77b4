package audit

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Types are those that a record can have.
var Types = []string{Intended, Issued, Refused, Appended, Started, Stopped, Segment, Resumed}

// ExportLines writes records as they stand.
func ExportLines(w io.Writer) (write func(*Record) error, flush func() error) {
	b := bufio.NewWriterSize(w, maxLine)
	return func(r *Record) error {
		_, err := b.Write(r.Raw)
		return err
	}, b.Flush
}

// columns are the fields that have a column of their own in CSV.
var columns = []string{
	"serial", "sha256", "san", "issuer", "not_before", "not_after", "ct_leaf_hash", "reason", "message", "claimed_issuer", "count", "kind", "entry", "log_index",
}

// ExportCSV writes records as RFC 4180 has it: a column for each of the fields
// that are asked for most, and the others as JSON in the last.
func ExportCSV(w io.Writer) (write func(*Record) error, flush func() error) {
	b := bufio.NewWriterSize(w, maxLine)
	c := csv.NewWriter(b)
	header := slices.Concat([]string{"seq", "time", "type", "service"}, columns, []string{"more"})
	err := c.Write(header)
	write = func(r *Record) error {
		if err != nil {
			return err
		}
		fields := map[string]json.RawMessage{}
		if len(r.Fields) > 0 {
			if err := json.Unmarshal(r.Fields, &fields); err != nil {
				return fmt.Errorf("record %d: %w", r.Seq, err)
			}
		}
		row := []string{strconv.FormatUint(r.Seq, 10), r.Time.Format(time.RFC3339Nano), cell(r.Type), cell(r.Service)}
		for _, name := range columns {
			var text string
			if json.Unmarshal(fields[name], &text) != nil {
				text = string(fields[name])
			}
			row = append(row, cell(text))
			delete(fields, name)
		}
		more := ""
		if len(fields) > 0 {
			data, err := json.Marshal(fields)
			if err != nil {
				return fmt.Errorf("record %d: %w", r.Seq, err)
			}
			more = string(data)
		}
		return c.Write(append(row, more))
	}
	return write, func() error {
		c.Flush()
		if err := c.Error(); err != nil {
			return err
		}
		return b.Flush()
	}
}

// cell keeps a spreadsheet from taking text for a formula: some of it is what
// strangers sent.
func cell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}
