// Command sigboxd is the appliance: a private Sigstore in one process.
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
	return cli.Run(ctx, root(), args, stdin, stdout, stderr)
}
