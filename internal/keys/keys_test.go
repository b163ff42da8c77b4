package keys

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteThenLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.pem")
	key, err := Generate()
	if err != nil {
		t.Fatal(err)
	}
	pass := GeneratePassphrase()
	if err := Write(path, key, pass); err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	got, err := Load(path, pass)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := x509.MarshalPKIXPublicKey(key.Public())
	have, _ := x509.MarshalPKIXPublicKey(got.Public())
	if string(want) != string(have) {
		t.Error("another key came back")
	}

	if err := Write(path, key, pass); !errors.Is(err, fs.ErrExist) {
		t.Errorf("overwriting: %v, want ErrExist", err)
	}
	if _, err := Load(path, GeneratePassphrase()); err == nil {
		t.Error("a wrong passphrase opened the key")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path, pass); err == nil || !strings.Contains(err.Error(), "chmod 0600") {
		t.Errorf("a key that all may read: %v", err)
	}
}

func TestOpenSSLReadsAndWrites(t *testing.T) {
	dir := t.TempDir()
	passFile, path := filepath.Join(dir, "pass"), filepath.Join(dir, "k.pem")
	if err := os.WriteFile(passFile, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pass, err := ReadPassphrase(passFile)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := Generate()
	if err := Write(path, key, pass); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("openssl", "pkey", "-in", path, "-passin", "file:"+passFile, "-noout", "-check").CombinedOutput(); err != nil {
		t.Fatalf("openssl reads ours: %v\n%s", err, out)
	}
	theirs := filepath.Join(dir, "theirs.pem")
	if out, err := exec.Command("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-aes-256-cbc", "-pass", "file:"+passFile, "-out", theirs).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	if _, err := Load(theirs, pass); err != nil {
		t.Errorf("we read openssl's: %v", err)
	}
	plain := filepath.Join(dir, "plain.pem")
	if out, err := exec.Command("openssl", "pkey", "-in", theirs, "-passin", "file:"+passFile, "-out", plain).CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v\n%s", err, out)
	}
	if err := os.Chmod(plain, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(plain, pass); err == nil {
		t.Error("an unencrypted key was loaded")
	}
}

func TestPassphraseStaysSecret(t *testing.T) {
	p := GeneratePassphrase()
	for _, s := range []string{fmt.Sprint(p), fmt.Sprintf("%v %+v %#v %s", p, p, p, p), p.LogValue().String()} {
		if strings.Contains(s, string(p.secret)) {
			t.Errorf("shown in %q", s)
		}
	}
	path := filepath.Join(t.TempDir(), "pass")
	if err := p.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	back, err := ReadPassphrase(path)
	if err != nil || string(back.secret) != string(p.secret) {
		t.Fatalf("read back: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadPassphrase(path); err == nil {
		t.Error("a passphrase that all may read was taken")
	}
}
