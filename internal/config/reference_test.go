package config

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/configuration.md")

// TestReference holds docs/configuration.md to the doc comments of the types.
func TestReference(t *testing.T) {
	const path = "../../docs/configuration.md"
	want := reference(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/configuration.md is stale: go test ./internal/config -run Reference -update")
	}
}

func reference(t *testing.T) []byte {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	structs, docs := map[string]*ast.StructType{}, map[string]string{}
	for _, d := range file.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		for _, s := range g.Specs {
			ts := s.(*ast.TypeSpec)
			if st, ok := ts.Type.(*ast.StructType); ok {
				structs[ts.Name.Name], docs[ts.Name.Name] = st, g.Doc.Text()
			}
		}
	}
	var b bytes.Buffer
	b.WriteString("# Configuration\n\n<!-- Made from internal/config/config.go by its test; edit the comments there. -->\n\n" +
		"One file, `sigbox.yaml` in the instance's folder. It is strict: an unknown key is an error. Paths are relative to the\n" +
		"file. Secrets are named by path. There are no environment variables. Changes take effect at the next start.\n")
	var walk func(name, prefix string)
	walk = func(name, prefix string) {
		type nested struct{ name, prefix string }
		var below []nested
		fmt.Fprintf(&b, "\n| key | type | meaning |\n|---|---|---|\n")
		for _, f := range structs[name].Fields.List {
			if f.Tag == nil {
				continue
			}
			key, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml"), ",")
			if key == "-" {
				continue
			}
			kind, elem := typeName(f.Type)
			doc := oneLine(f.Doc.Text())
			if structs[elem] != nil {
				if doc == "" {
					doc = oneLine(docs[elem])
				}
				below = append(below, nested{elem, prefix + key + map[bool]string{true: "[].", false: "."}[strings.HasPrefix(kind, "list")]})
			}
			fmt.Fprintf(&b, "| `%s%s` | %s | %s |\n", prefix, key, kind, doc)
		}
		for _, n := range below {
			fmt.Fprintf(&b, "\n## `%s`\n\n%s\n", strings.TrimSuffix(n.prefix, "."), oneLine(docs[n.name]))
			walk(n.name, n.prefix)
		}
	}
	walk("Config", "")
	return b.Bytes()
}

func typeName(e ast.Expr) (kind, elem string) {
	switch t := e.(type) {
	case *ast.StarExpr:
		return typeName(t.X)
	case *ast.ArrayType:
		kind, elem = typeName(t.Elt)
		return "list of " + kind, elem
	case *ast.MapType:
		_, elem = typeName(t.Value)
		return "mapping", elem
	case *ast.SelectorExpr:
		if t.Sel.Name == "Duration" {
			return "time (`10m`)", ""
		}
		return "mapping", ""
	case *ast.Ident:
		switch t.Name {
		case "string", "bool":
			return t.Name, ""
		case "int", "int64":
			return "integer", ""
		}
		return "mapping", t.Name
	}
	return "?", ""
}

func oneLine(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "|", "\\|")
}
