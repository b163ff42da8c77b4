package issuer

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// jobDomain completes a job's name to an address. The top-level domain
// "internal" is reserved for private use and never delegated.
const jobDomain = "ci.internal"

// The dot-atom of RFC 5322 section 3.2.3 without the characters that a shell or
// a regular expression would read as its own, and a domain of at least two
// labels. Fulcio accepts a superset.
var (
	localPart = regexp.MustCompile(`^[A-Za-z0-9_+/=~#-]+(\.[A-Za-z0-9_+/=~#-]+)*$`)
	domain    = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z])?$`)
)

// Identity is the identity that a certificate for a job will carry: subject
// itself if it is an e-mail address, subject@ci.internal if it is a plain name.
func Identity(subject string) (string, error) {
	if subject == "" {
		return "", errors.New("subject is empty")
	}
	name, host, found := strings.Cut(subject, "@")
	if !found {
		host = jobDomain
	}
	// RFC 5321 section 4.5.3.1 bounds both parts; RFC 5280 the whole.
	switch {
	case len(name) > 64:
		return "", fmt.Errorf("subject %.80q: the name is longer than 64 characters", subject)
	case !localPart.MatchString(name):
		return "", fmt.Errorf("subject %q: a name is made of letters, digits and . _ + / = ~ # -, with no dot first, last or doubled", subject)
	case len(host) > 185 || !domain.MatchString(host):
		return "", fmt.Errorf("subject %.200q: what follows the @ is not a domain name with at least two labels", subject)
	}
	return name + "@" + host, nil
}
