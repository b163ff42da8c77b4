package faults

import (
	"encoding/hex"
	"testing"
)

// TestTree holds the judge's own tree to the roots that implementations of RFC
// 6962 have agreed upon.
func TestTree(t *testing.T) {
	var leaves [][32]byte
	for _, text := range []string{
		"", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
	} {
		leaves = append(leaves, leafHash(must(hex.DecodeString(text))(t)))
	}
	roots := rootsOf(leaves)
	for size, want := range map[int]string{
		0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
		1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
		2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
		8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
	} {
		if got := hex.EncodeToString(roots[size][:]); got != want {
			t.Errorf("root of size %d is %s, want %s", size, got, want)
		}
	}
}
