// Package version says which build this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is set at link time: -ldflags "-X github.com/sigbox/sigbox/internal/version.Version=v1.2.3".
var Version = "devel"

// Info describes a build.
type Info struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"` // commit, where the build recorded one
	Modified bool   `json:"modified,omitempty"` // the work tree differed from that commit
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
}

// Get reads the build's own record.
func Get() Info {
	i := Info{Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if b, ok := debug.ReadBuildInfo(); ok {
		for _, s := range b.Settings {
			switch s.Key {
			case "vcs.revision":
				i.Revision = s.Value
			case "vcs.modified":
				i.Modified = s.Value == "true"
			}
		}
	}
	return i
}

func (i Info) String() string {
	s := fmt.Sprintf("%s (%s, %s", i.Version, i.Go, i.Platform)
	if i.Revision != "" {
		s += ", " + i.Revision
		if i.Modified {
			s += " modified"
		}
	}
	return s + ")"
}
