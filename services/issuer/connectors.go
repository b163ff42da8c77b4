package issuer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"

	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
)

// Connector is an upstream identity provider. Config is Dex's configuration of
// the connector, as its documentation for the type has it; a redirectURI there
// is the issuer's URL + "/callback".
type Connector struct {
	Type   string // ldap, oidc, saml, github, gitlab, …
	ID     string
	Name   string // shown on the sign-in page: ID if empty
	Config map[string]any
}

var connectorID = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,63}$`)

// dexConnectors checks what Dex would only find out, or only log, when it opens
// a connector.
func dexConnectors(configured []Connector) ([]storage.Connector, error) {
	var all []storage.Connector
	seen := map[string]bool{server.LocalConnector: true}
	for _, c := range configured {
		if !connectorID.MatchString(c.ID) {
			return nil, fmt.Errorf("connector id %q: use lower case letters, digits, - and _", c.ID)
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("connector id %q is taken", c.ID)
		}
		seen[c.ID] = true
		config, known := server.ConnectorsConfig[c.Type]
		// The mock connectors sign anyone in. authproxy believes request headers,
		// which anyone can send to a server that is not hidden behind its proxy.
		if !known || c.Type == "mockCallback" || c.Type == "mockPassword" || c.Type == "authproxy" {
			return nil, fmt.Errorf("connector %q: there is no type %q", c.ID, c.Type)
		}
		raw, err := json.Marshal(c.Config)
		if err != nil {
			return nil, fmt.Errorf("connector %q: %w", c.ID, err)
		}
		strict := json.NewDecoder(bytes.NewReader(raw))
		strict.DisallowUnknownFields()
		if err := strict.Decode(config()); err != nil {
			return nil, fmt.Errorf("connector %q: config of type %s: %w", c.ID, c.Type, err)
		}
		if c.Name == "" {
			c.Name = c.ID
		}
		all = append(all, storage.Connector{ID: c.ID, Type: c.Type, Name: c.Name, Config: raw})
	}
	return all, nil
}
