package front

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLSConfig serves the certificate in two PEM files and takes up a renewed one
// without a restart. TLS 1.2 is the least (CVE-2024-23656).
func TLSConfig(certFile, keyFile string) (*tls.Config, error) {
	info, err := os.Stat(keyFile)
	if err != nil {
		return nil, fmt.Errorf("loading tls key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("tls key %s is open to every user (mode %04o): chmod 0600 it", keyFile, info.Mode().Perm())
	}
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if _, err := c.get(nil); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	current *tls.Certificate
	changed time.Time // of the files that current was read from
	checked time.Time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && time.Since(c.checked) < 10*time.Second {
		return c.current, nil
	}
	c.checked = time.Now()
	var newest time.Time
	for _, f := range []string{c.certFile, c.keyFile} {
		if info, err := os.Stat(f); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	if c.current != nil && newest.Equal(c.changed) {
		return c.current, nil
	}
	cert, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		if c.current != nil {
			return c.current, nil // half-written pair: the old one serves on
		}
		return nil, fmt.Errorf("loading tls certificate: %w", err)
	}
	c.current, c.changed = &cert, newest
	return c.current, nil
}
