package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sigbox/sigbox/internal/cli"
	"github.com/sigbox/sigbox/internal/durable"
	"github.com/sigbox/sigbox/tuf"
)

// Files of a home and of a profile in it.
const (
	profilesDir = "profiles"
	defaultName = "default"
	profileFile = "profile.json"
	caFile      = "ca.pem"
	maxRootFile = 512_000
)

// Home is the folder in which pinned instances are kept, one profile each.
type Home struct{ Dir string }

// FindHome is the folder that SIGBOX_HOME names, else sigbox in the user's
// configuration folder (XDG_CONFIG_HOME, by default ~/.config).
func FindHome() (Home, error) {
	if dir := os.Getenv("SIGBOX_HOME"); dir != "" {
		return Home{dir}, nil
	}
	base, err := os.UserConfigDir()
	if err != nil {
		return Home{}, cli.Hint(cli.Usage("finding the configuration folder: %w", err), "set SIGBOX_HOME to a folder of your own")
	}
	return Home{filepath.Join(base, "sigbox")}, nil
}

// Profile is one pinned instance.
type Profile struct {
	Name string `json:"-"`
	// URL is the instance's origin, without a slash at the end.
	URL string `json:"url"`
	// RootSHA256 is the SHA-256 of the first TUF root, in hexadecimal.
	RootSHA256 string    `json:"root_sha256"`
	Pinned     time.Time `json:"pinned"`

	dir string
}

// InitOptions say what is to be pinned. At least one of Root and RootChecksum
// is needed: whoever stands between here and the instance could otherwise put
// his own root in its place.
type InitOptions struct {
	URL          string
	Root         []byte // 1.root.json as carried here by other means
	RootChecksum string // SHA-256 of 1.root.json, in hexadecimal
	CA           []byte // PEM; certificates that vouch for the instance's TLS
	Name         string // of the profile; empty: from the URL
	Replace      bool   // an existing profile that pins another root
}

// Init pins an instance, fetches what it vouches for and makes it the default.
// It leaves nothing behind when it fails.
func (h Home) Init(ctx context.Context, o InitOptions) (*Profile, error) {
	origin, err := checkURL(o.URL)
	if err != nil {
		return nil, err
	}
	if len(o.Root) == 0 && o.RootChecksum == "" {
		return nil, cli.Hint(cli.Usage("nothing says that %s is the instance you mean: --root or --root-checksum is needed", origin),
			"`sigboxd status` on the instance's machine, and `sigboxd quickstart` when it starts, print the checksum")
	}
	name := o.Name
	if name == "" {
		u, err := url.Parse(origin)
		if err != nil {
			return nil, cli.Usage("%w", err)
		}
		name = strings.ReplaceAll(strings.NewReplacer("[", "", "]", "").Replace(u.Host), ":", "-")
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	base, err := newBase(o.CA)
	if err != nil {
		return nil, cli.Usage("%w", err)
	}
	first, err := pinnedRoot(&transport{ctx, base}, origin, o)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(first)
	p := &Profile{Name: name, URL: origin, RootSHA256: hex.EncodeToString(sum[:]), Pinned: time.Now().UTC().Truncate(time.Second)}

	final := filepath.Join(h.Dir, profilesDir, name)
	old, err := h.Open(name)
	switch {
	case err == nil && old.RootSHA256 == p.RootSHA256 && old.URL == p.URL, errors.Is(err, errNoProfile):
	case o.Replace:
	case err == nil:
		return nil, cli.Hint(cli.Usage("profile %q pins another instance: %s with root %s", name, old.URL, old.RootSHA256),
			"choose another name with --profile, or give --replace if the instance was really made anew")
	default:
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(h.Dir, profilesDir), 0o700); err != nil {
		return nil, fmt.Errorf("making the profile: %w", err)
	}
	p.dir, err = os.MkdirTemp(filepath.Join(h.Dir, profilesDir), ".new-")
	if err != nil {
		return nil, fmt.Errorf("making the profile: %w", err)
	}
	defer func() { _ = os.RemoveAll(p.dir) }()
	if err := p.write(first, o.CA); err != nil {
		return nil, fmt.Errorf("making the profile: %w", err)
	}
	if _, err := p.Refresh(ctx); err != nil {
		return nil, err
	}
	if err := swap(p.dir, final); err != nil {
		return nil, fmt.Errorf("making the profile: %w", err)
	}
	made := *p
	made.dir = final
	if err := durable.WriteFile(filepath.Join(h.Dir, defaultName), []byte(name+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("making %q the default profile: %w", name, err)
	}
	return &made, nil
}

// pinnedRoot is the first root, checked against all that is known of it.
func pinnedRoot(t *transport, origin string, o InitOptions) ([]byte, error) {
	first := o.Root
	if len(first) == 0 {
		var err error
		if first, err = t.get(origin+"/tuf/"+tuf.FirstRoot, maxRootFile); err != nil {
			return nil, cli.Hint(fmt.Errorf("fetching the TUF root: %w", err), "is sigbox running there? try: curl %s/readyz", origin)
		}
	}
	if o.RootChecksum != "" {
		want, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(o.RootChecksum)), "sha256:"))
		if err != nil || len(want) != sha256.Size {
			return nil, cli.Usage("%q is not a SHA-256 in hexadecimal", o.RootChecksum)
		}
		if sum := sha256.Sum256(first); !bytes.Equal(sum[:], want) {
			return nil, cli.Hint(cli.No("the TUF root has the checksum %x, not %x: this is not the instance you mean", sum, want),
				"compare with what `sigboxd status` prints on the instance's machine")
		}
	}
	return first, nil
}

// checkURL accepts an origin: scheme, host, port.
func checkURL(s string) (string, error) {
	u, err := url.Parse(strings.TrimRight(s, "/"))
	switch {
	case s == "":
		return "", cli.Hint(cli.Usage("the instance's URL is needed"), "sigbox trust init --url https://sigstore.example --root-checksum SHA256")
	case err != nil:
		return "", cli.Usage("%w", err)
	case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return "", cli.Hint(cli.Usage("%q is not the URL of an instance", s), "scheme, host and port only, such as https://sigstore.example")
	}
	if u.Scheme == "http" && !loopback(u.Hostname()) {
		return "", cli.Hint(cli.Usage("%s is plain HTTP beyond this machine: tokens would be readable on the way", s), "use https; --ca-file names a private certificate authority")
	}
	return u.Scheme + "://" + strings.ToLower(u.Host), nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

func checkName(name string) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if name == "" || len(name) > 200 || name[0] == '.' || strings.Trim(name, allowed) != "" {
		return cli.Usage("%q cannot be the name of a profile", name)
	}
	return nil
}

func (p *Profile) write(first, ca []byte) error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	err = errors.Join(
		durable.WriteFile(filepath.Join(p.dir, tuf.FirstRoot), first, 0o600),
		durable.WriteFile(filepath.Join(p.dir, profileFile), append(data, '\n'), 0o600),
	)
	if len(ca) > 0 {
		err = errors.Join(err, durable.WriteFile(filepath.Join(p.dir, caFile), ca, 0o600))
	}
	return err
}

// swap puts a new folder where an older one may be.
func swap(from, to string) error {
	aside := from + "-old"
	if err := os.Rename(to, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return errors.Join(err, os.Rename(aside, to))
	}
	return errors.Join(os.RemoveAll(aside), durable.SyncDir(filepath.Dir(to)))
}

var errNoProfile = errors.New("no such profile")

// Open reads a profile; an empty name means the default one.
func (h Home) Open(name string) (*Profile, error) {
	hint := "sigbox trust init --url URL --root-checksum SHA256"
	if name == "" {
		data, err := readFile(filepath.Join(h.Dir, defaultName), 4096)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, cli.Hint(cli.Usage("no instance is pinned in %s", h.Dir), "%s", hint)
		}
		if err != nil {
			return nil, fmt.Errorf("reading the default profile: %w", err)
		}
		name = strings.TrimSpace(string(data))
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(h.Dir, profilesDir, name)
	data, err := readFile(filepath.Join(dir, profileFile), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Hint(cli.Usage("profile %q: %w", name, errNoProfile), "%s", hint)
	}
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", name, err)
	}
	p := &Profile{Name: name, dir: dir}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, cli.Usage("profile %q: %s: %w", name, profileFile, err)
	}
	if p.URL, err = checkURL(p.URL); err != nil {
		return nil, fmt.Errorf("profile %q: %w", name, err)
	}
	return p, nil
}

// Names lists the profiles in order.
func (h Home) Names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(h.Dir, profilesDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing profiles: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && checkName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Dir is the profile's folder.
func (p *Profile) Dir() string { return p.dir }

// Root is the pinned first root.
func (p *Profile) Root() ([]byte, error) {
	first, err := readFile(filepath.Join(p.dir, tuf.FirstRoot), maxRootFile)
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.Name, err)
	}
	if sum := sha256.Sum256(first); hex.EncodeToString(sum[:]) != p.RootSHA256 {
		return nil, cli.Usage("profile %q: %s is not the root that was pinned", p.Name, tuf.FirstRoot)
	}
	return first, nil
}

// CAFile is the path of the certificates that vouch for the instance's TLS, or
// empty.
func (p *Profile) CAFile() string {
	path := filepath.Join(p.dir, caFile)
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

func (p *Profile) transport(ctx context.Context) (*transport, error) {
	var ca []byte
	if path := p.CAFile(); path != "" {
		var err error
		if ca, err = readFile(path, 1<<20); err != nil {
			return nil, fmt.Errorf("profile %q: %w", p.Name, err)
		}
	}
	base, err := newBase(ca)
	if err != nil {
		return nil, fmt.Errorf("profile %q: %w", p.Name, err)
	}
	return &transport{ctx, base}, nil
}
