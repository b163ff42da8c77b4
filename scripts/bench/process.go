package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// clockTicks is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTicks = 100

// A process is read through /proc. A nil one is on another machine and costs
// nothing.
type process struct{ pid int }

// cpu is the user and system time of the process so far.
func (p *process) cpu() time.Duration {
	if p == nil {
		return 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0
	}
	// The second field is the name in parentheses and may contain spaces.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(string(fields[11]), 10, 64)
	system, _ := strconv.ParseInt(string(fields[12]), 10, 64)
	return time.Duration(user+system) * time.Second / clockTicks
}

// rss is the resident memory in bytes.
func (p *process) rss() int64 {
	if p == nil {
		return 0
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "VmRSS:" {
			kib, _ := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// watchRSS looks at the memory until the context ends; the function it returns
// tells the most it saw.
func (p *process) watchRSS(ctx context.Context) func() int64 {
	if p == nil {
		return func() int64 { return 0 }
	}
	var peak atomic.Int64
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			peak.Store(max(peak.Load(), p.rss()))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return peak.Load
}
