package main

import (
	"fmt"
	"io"
	"strings"
)

func (r *Report) markdown(w io.Writer) {
	fmt.Fprintf(w, "%s, %s, %s. The load generator runs on the same machine.\n", r.Taken.Format("2 January 2006"), r.Version, r.Machine)
	fmt.Fprintf(w, "A durable write of 4 KiB on this disk: p50 %.2f ms, p95 %.2f ms.\n\n", r.Fsync.P50, r.Fsync.P95)
	for _, m := range r.Instances {
		fmt.Fprintf(w, "## Sequencing %s\n\n", m.Sequencing)
		fmt.Fprintf(w, "| what | figure |\n|---|---|\n")
		fmt.Fprintf(w, "| start to ready, existing instance (%d starts) | %.0f to %.0f ms |\n",
			len(m.StartToReady), m.StartToReady[0], m.StartToReady[len(m.StartToReady)-1])
		fmt.Fprintf(w, "| memory idle | %s |\n", mb(m.IdleRSS))
		fmt.Fprintf(w, "| disk per signature | %.1f KB |\n\n", m.BytesPerSignature/1000)
		m.Load.markdown(w)
	}
	if c := r.Client; c != nil {
		fmt.Fprintf(w, "`sigbox verify-blob --trusted-root` as a process: p50 %.0f ms, p95 %.0f ms; the program is %s.\n", c.VerifyBlob.P50, c.VerifyBlob.P95, mb(c.Bytes))
	}
}

func (l *Load) markdown(w io.Writer) {
	s := l.Sequential
	fmt.Fprintf(w, "| %d signatures, one after the other | p50 ms | p95 ms |\n|---|---|---|\n", s.Signatures)
	for _, row := range []struct {
		name string
		q    Quantiles
	}{
		{"token", s.Token},
		{"certificate and SCT", s.Certificate},
		{"log, with proof", s.Log},
		{"timestamp", s.Timestamp},
		{"verification", s.Verify},
		{"**whole signature, verified**", s.Total},
	} {
		fmt.Fprintf(w, "| %s | %.1f | %.1f |\n", row.name, row.q.P50, row.q.P95)
	}
	if l.CPUPerSignature > 0 {
		fmt.Fprintf(w, "\nServer CPU per signature: %.1f ms.\n", l.CPUPerSignature)
	}
	fmt.Fprintf(w, "\n| workers | signatures/s | p50 ms | p95 ms | errors | server CPU/signature | server memory |\n|---|---|---|---|---|---|---|\n")
	for _, c := range l.Concurrent {
		cpu, memory := "–", "–"
		if c.PeakRSS > 0 {
			cpu, memory = fmt.Sprintf("%.1f ms", c.CPUPerSignature), mb(c.PeakRSS)
		}
		fmt.Fprintf(w, "| %d | %.0f | %.0f | %.0f | %d | %s | %s |\n",
			c.Workers, c.PerSecond, c.Latency.P50, c.Latency.P95, c.Errors, cpu, memory)
	}
	var rates []string
	for _, v := range l.Verification {
		rates = append(rates, fmt.Sprintf("%.0f/s with %d goroutines", v.PerSecond, v.Goroutines))
	}
	fmt.Fprintf(w, "\nOffline verifications: %s (%d signatures, all of them valid).\n\n", strings.Join(rates, ", "), l.Verification[0].Signatures)
	for _, c := range l.Concurrent {
		if c.Errors > 0 {
			fmt.Fprintf(w, "The first error with %d workers: %s\n\n", c.Workers, c.FirstError)
		}
	}
}

func mb(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/1e6) }
