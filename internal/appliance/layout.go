package appliance

import (
	"path/filepath"

	"github.com/sigbox/sigbox/internal/audit"
	"github.com/sigbox/sigbox/internal/config"
)

// Online keys, in the configuration's keys.dir.
const (
	keyFulcio    = "fulcio.pem"
	keyCT        = "ctlog.pem"
	keyRekor     = "rekor.pem"
	keyTSA       = "tsa.pem"
	keySnapshot  = "tuf-snapshot.pem"
	keyTimestamp = "tuf-timestamp.pem"
	keyCI        = "ci.pem"
)

// onlineKeys are those that serving needs.
var onlineKeys = []string{keyFulcio, keyCT, keyRekor, keyTSA, keySnapshot, keyTimestamp, keyCI}

// Keys that can leave the machine after init, in OfflineDir.
const (
	keyFulcioRoot = "fulcio-root.pem"
	keyTSARoot    = "tsa-root.pem"
	keyTUFRoot    = "tuf-root.pem"
	keyTUFTargets = "tuf-targets.pem"
)

// OfflineDir holds, after init, the keys that serving does not need. Take them
// off the machine.
const OfflineDir = "offline"

const (
	certsDir    = "certs"
	chainFulcio = "fulcio-chain.pem" // intermediate, root
	chainTSA    = "tsa-chain.pem"    // leaf, root
	tufDir      = "tuf"
	adminSocket = "admin.sock"
)

// layout resolves where an instance keeps what.
type layout struct {
	dir string
	cfg *config.Config
}

func (l layout) offline(name string) string { return filepath.Join(l.dir, OfflineDir, name) }
func (l layout) key(name string) string     { return filepath.Join(l.cfg.Path(l.cfg.Keys.Dir), name) }
func (l layout) cert(name string) string    { return filepath.Join(l.dir, certsDir, name) }
func (l layout) tuf() string                { return filepath.Join(l.dir, tufDir) }
func (l layout) data(name string) string    { return filepath.Join(l.cfg.Path(l.cfg.Storage.Dir), name) }
func (l layout) logs() string               { return l.data("logs") }
func (l layout) anchors() string            { return l.cfg.Path(l.cfg.Storage.AnchorDir) }
func (l layout) archive() string            { return l.cfg.Path(l.cfg.Storage.ArchiveDir) }
func (l layout) rekor() string              { return l.data("rekor") }
func (l layout) issuer() string             { return l.data("issuer") }
func (l layout) run() string                { return l.cfg.Path(l.cfg.RunDir) }
func (l layout) audit() string              { return l.cfg.Path(l.cfg.AuditDir) }
func (l layout) passphrase() string         { return l.cfg.Path(l.cfg.Keys.PassphraseFile) }
func (l layout) socket() string             { return filepath.Join(l.run(), adminSocket) }

func (l layout) auditOptions(instance string) audit.Options {
	return audit.Options{Dir: l.audit(), Instance: instance}
}
