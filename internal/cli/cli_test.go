package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"ok", ExitOK, ""},
		{"fails", ExitFailed, "prog: error: broken\n"},
		{"hints", ExitNo, "prog: error: bad signature\nprog: hint: try harder\n"},
		{"usage", ExitUsage, "prog: error: no such thing\n"},
		{"ok --nope", ExitUsage, "prog: error: unknown flag: --nope\nprog: hint: prog ok --help\n"},
		{"ok extra", ExitUsage, "prog: hint: prog ok --help\n"},
		{"needs", ExitUsage, "required flag(s) \"x\" not set\nprog: hint: prog needs --help\n"},
		{"nope", ExitUsage, "prog: error: unknown command \"nope\""},
		{"group", ExitUsage, "a command is needed"},
		{"group nope", ExitUsage, "unknown command \"nope\""},
		{"", ExitUsage, "a command is needed"},
	} {
		root := &cobra.Command{Use: "prog"}
		add := func(parent *cobra.Command, use string, err error) *cobra.Command {
			c := &cobra.Command{Use: use, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return err }}
			parent.AddCommand(c)
			return c
		}
		add(root, "ok", nil)
		add(root, "fails", errors.New("broken"))
		add(root, "hints", Hint(No("bad signature"), "try %s", "harder"))
		add(root, "usage", Usage("no such thing"))
		needs := add(root, "needs", nil)
		needs.Flags().String("x", "", "")
		if err := needs.MarkFlagRequired("x"); err != nil {
			t.Fatal(err)
		}
		group := &cobra.Command{Use: "group"}
		add(group, "inner", nil)
		root.AddCommand(group)

		var stdout, stderr bytes.Buffer
		code := Run(t.Context(), root, strings.Fields(tc.args), nil, &stdout, &stderr)
		if code != tc.code || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("%q: exit %d, want %d; stderr %q, want %q", tc.args, code, tc.code, stderr.String(), tc.want)
		}
		if stdout.Len() > 0 {
			t.Errorf("%q: %q on standard output", tc.args, stdout.String())
		}
	}
}
