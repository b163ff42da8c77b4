// Command sigbox signs, verifies, and sets other Sigstore clients up for an
// instance that sigboxd serves.
package main

import (
	"context"
	"io"
	"os"

	"github.com/sigbox/sigbox/internal/cli"
)

func main() {
	ctx, stop := cli.SignalContext()
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{}
	if code := cli.Run(ctx, a.root(), args, stdin, stdout, stderr); code != cli.ExitOK {
		return code
	}
	return a.childCode
}
