package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// usage is the space that a folder's files take, in bytes: blocks, not lengths.
func usage(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() {
			total += st.Blocks * 512
		}
		return nil
	})
	return total, err
}

// fsyncs measures what a durable write of 4 KiB costs in the folder: each is
// appended to one file and synced.
func fsyncs(dir string) (Quantiles, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return Quantiles{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	page := make([]byte, 4096)
	for range 200 {
		began := time.Now()
		if _, err := f.Write(page); err != nil {
			return Quantiles{}, err
		}
		if err := f.Sync(); err != nil {
			return Quantiles{}, err
		}
		took = append(took, time.Since(began))
	}
	return quantiles(took), nil
}
