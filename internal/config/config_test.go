package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const least = "url: http://127.0.0.1:8080\nlisten: 127.0.0.1:8080\n"

func TestDefaults(t *testing.T) {
	dir := t.TempDir()
	c, err := Parse([]byte(least), dir)
	if err != nil {
		t.Fatal(err)
	}
	if !*c.Log.SequenceOnWrite || c.CI.DefaultTTL != 10*time.Minute || c.Path(c.Storage.Dir) != filepath.Join(dir, "data") {
		t.Errorf("%+v", c)
	}
	// What is written reads back as the same configuration.
	out, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(out, dir); err != nil {
		t.Errorf("our own output: %v\n%s", err, out)
	}
}

func TestRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ yaml, want string }{
		"empty":                {"", "url is missing"},
		"unknown key":          {least + "colour: blue\n", "field colour not found"},
		"unknown nested key":   {least + "ci: {default_tll: 1m}\n", "field default_tll not found"},
		"unknown key in tls":   {"url: https://a.example\nlisten: :443\ntls: {cert: x}\n", "field cert not found in tls"},
		"a word for tls":       {least + "tls: yes please\n", "terminated"},
		"two documents":        {least + "---\nurl: x\n", "more than one"},
		"path in url":          {"url: http://127.0.0.1/x\nlisten: 127.0.0.1:1\n", "more than scheme"},
		"credentials in url":   {"url: https://a:b@x.example\nlisten: 127.0.0.1:1\n", "more than scheme"},
		"scheme":               {"url: ftp://127.0.0.1\nlisten: 127.0.0.1:1\n", "not an http"},
		"plain http beyond":    {"url: http://a.example\nlisten: 127.0.0.1:1\n", "https"},
		"listening beyond":     {"url: https://a.example\nlisten: 0.0.0.0:443\n", "not loopback"},
		"listening everywhere": {"url: https://a.example\nlisten: ':443'\n", "not loopback"},
		"half of tls":          {"url: https://a.example\nlisten: ':443'\ntls: {cert_file: x}\n", "both"},
		"engine":               {least + "storage: {engine: flatfile}\n", "flatfile"},
		"dsn for sqlite":       {least + "storage: {dsn_file: dsn}\n", "storage.dsn_file is for"},
		"no dsn":               {least + "storage: {engine: postgres}\n", "storage.dsn_file is missing"},
		"dir for postgres":     {least + "storage: {engine: postgres, dsn_file: dsn, dir: data}\n", "storage.dir is for"},
		"archive for postgres": {least + "storage: {engine: postgres, dsn_file: dsn, archive_dir: a}\n", "storage.archive_dir is for"},
		"audit for postgres":   {least + "storage: {engine: postgres, dsn_file: dsn}\naudit_dir: a\n", "audit_dir is for"},
		"ttl":                  {least + "ci: {default_ttl: 2h}\n", "longer than ci.max_ttl"},
		"negative time":        {least + "tuf: {check_interval: -1s}\n", "tuf.check_interval"},
		"own issuer":           {least + "fulcio: {issuers: [{url: http://127.0.0.1:8080/ci, type: email}]}\n", "own"},
		"issuer without url":   {least + "fulcio: {issuers: [{type: email}]}\n", "either url or pattern"},
		"issuer twice":         {least + "fulcio: {issuers: [{url: https://i, type: email}, {url: https://i, type: uri}]}\n", "twice"},
		"not yaml":             {"\x00\x01", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(tc.yaml), t.TempDir())
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want something about %q", err, tc.want)
			}
		})
	}
}

func TestPostgres(t *testing.T) {
	dir := t.TempDir()
	c, err := Parse([]byte(least+"storage: {engine: postgres, dsn_file: secret/dsn}\n"), dir)
	if err != nil {
		t.Fatal(err)
	}
	if c.Path(c.Storage.DSNFile) != filepath.Join(dir, "secret/dsn") || c.Storage.Dir != "" || c.AuditDir != "" {
		t.Errorf("%+v", c)
	}
	out, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(out, dir); err != nil {
		t.Errorf("our own output: %v\n%s", err, out)
	}
}

func TestTLS(t *testing.T) {
	for name, yaml := range map[string]string{
		"terminated": "url: https://a.example\nlisten: 0.0.0.0:80\ntls: terminated\n",
		"files":      "url: https://a.example\nlisten: 0.0.0.0:443\ntls: {cert_file: c, key_file: k}\n",
	} {
		c, err := Parse([]byte(yaml), t.TempDir())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		out, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(out, t.TempDir())
		if err != nil || again.TLS != c.TLS {
			t.Errorf("%s: %+v came back as %+v, %v", name, c.TLS, again, err)
		}
	}
}

func TestPassphraseFromCredential(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if err := os.WriteFile(filepath.Join(dir, "passphrase"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Parse([]byte(least), t.TempDir())
	if err != nil || c.Path(c.Keys.PassphraseFile) != filepath.Join(dir, "passphrase") {
		t.Errorf("%v, %v", c, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(least))
	f.Add([]byte("tls: {cert_file: [}"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, dir)
		if err == nil && (c.URL == "" || c.Listen == "") {
			t.Error("a configuration without url or listen passed")
		}
	})
}
