package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

const (
	certificateType = "CERTIFICATE"
	// maxPEM and maxCertificates bound what Parse reads from a file.
	maxPEM          = 1 << 20
	maxCertificates = 256
)

// Encode writes certificates as PEM, in the order given.
func Encode(certs ...*x509.Certificate) []byte {
	var buf bytes.Buffer
	for _, c := range certs {
		// A bytes.Buffer does not fail, and certificates carry no headers.
		_ = pem.Encode(&buf, &pem.Block{Type: certificateType, Bytes: c.Raw})
	}
	return buf.Bytes()
}

// Parse reads one or more PEM certificates, in order. Anything else among them
// is an error, apart from text before the first block and between blocks.
func Parse(data []byte) ([]*x509.Certificate, error) {
	if len(data) > maxPEM {
		return nil, fmt.Errorf("certificate file has %d bytes, more than %d", len(data), maxPEM)
	}
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != certificateType {
			return nil, fmt.Errorf("PEM block %d is a %q, not a certificate", len(certs)+1, block.Type)
		}
		if len(certs) == maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if bytes.Contains(data, []byte("-----BEGIN")) {
		return nil, fmt.Errorf("PEM block %d is damaged", len(certs)+1)
	}
	if len(certs) == 0 {
		return nil, errors.New("no PEM certificate found")
	}
	return certs, nil
}
