// Package e2etest is the stage of the end-to-end tests: the product's programs
// built and run as a user runs them, a registry, an image, stock clients, and a
// watch for anything that dials out.
//
// A package of tests hands its TestMain to Main and calls AirGap from one test;
// that test runs all the others again in a network namespace with nothing but
// loopback.
package e2etest

import (
	"fmt"
	"os"
	"testing"
)

// modeEnv tells a re-executed test binary what it is to be.
const modeEnv = "SIGBOX_E2E_MODE"

const (
	modeAirGap  = "airgap"  // the tests, in a namespace with only loopback
	modeSmallFS = "smallfs" // a program on a file system of a few megabytes
)

// Main runs a package's tests and fails them if any program they started asked
// for a host that is not this one. The caller exits with what it returns.
func Main(m *testing.M) int {
	switch mode := os.Getenv(modeEnv); mode {
	case "":
		return watched(m, func() []string { return nil })
	case modeAirGap:
		dialled, err := enterAirGap()
		if err != nil {
			fmt.Fprintln(os.Stderr, "air gap:", err)
			return 1
		}
		return watched(m, dialled)
	case modeSmallFS:
		fmt.Fprintln(os.Stderr, "small file system:", enterSmallFS())
		return 1
	default:
		fmt.Fprintf(os.Stderr, "%s=%q is unknown\n", modeEnv, mode)
		return 1
	}
}

// watched runs the tests with the proxy trap set and reports what it and the
// namespace's counters caught.
func watched(m *testing.M, dialled func() []string) int {
	trap, err := setTrap()
	if err != nil {
		fmt.Fprintln(os.Stderr, "proxy trap:", err)
		return 1
	}
	code := m.Run()
	removeScratch()
	for _, what := range append(trap.caught(), dialled()...) {
		fmt.Fprintln(os.Stderr, "FAIL: something dialled out:", what)
		code = 1
	}
	return code
}
