package issuer

import (
	"embed"
	"io/fs"
	"path"

	"github.com/dexidp/dex/web"
)

//go:embed header.html
var ours embed.FS

// pages are Dex's templates and style sheets with a header that names the
// instance instead of showing Dex's logo.
type pages struct{ fs.FS }

func newPages() fs.FS { return pages{web.FS()} }

func (p pages) Open(name string) (fs.File, error) {
	if name == "templates/header.html" {
		return ours.Open(path.Base(name))
	}
	return p.FS.Open(name)
}
