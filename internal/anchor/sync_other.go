//go:build !linux

package anchor

import "os"

func fdatasync(f *os.File) error { return f.Sync() }
