package issuer

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"unicode"

	"github.com/dexidp/dex/storage"
	"golang.org/x/crypto/bcrypt"
)

// User is a person who signs in with a password of this instance.
type User struct {
	// Email is what the person types and what certificates carry. It counts as
	// verified: whoever writes the configuration vouches for it.
	Email string
	// Username is shown on pages and in the claim "name": the address if empty.
	Username string
	// ID is the person's part of the claim "sub". If empty it follows from the
	// address, so that it survives restarts.
	ID string
	// PasswordHash is a bcrypt hash of cost 10 to 16, see [HashPassword].
	PasswordHash string
}

const (
	hashCost    = 12
	minHashCost = 10 // Dex refuses sign-ins outside these bounds
	maxHashCost = 16
)

// HashPassword makes the hash that a [User] is configured with. bcrypt takes at
// most 72 bytes.
func HashPassword(password []byte) (string, error) {
	if len(password) == 0 {
		return "", errors.New("password is empty")
	}
	hash, err := bcrypt.GenerateFromPassword(password, hashCost)
	if err != nil {
		return "", fmt.Errorf("hashing password: %w", err)
	}
	return string(hash), nil
}

// directory is the configured users in front of a storage.
type directory struct {
	storage.Storage
	users map[string]storage.Password // by address in lower case
	// stranger stands for every address that is unknown. Its hash belongs to no
	// password; comparing against it takes as long as for a user, so that the
	// time of a refusal does not tell who has an account.
	stranger storage.Password
}

func newDirectory(s storage.Storage, configured []User) (*directory, error) {
	d := &directory{Storage: s, users: make(map[string]storage.Password, len(configured))}
	cost := minHashCost
	for _, u := range configured {
		// Fulcio wants a domain, and a certificate has no room for other than ASCII
		// (RFC 5280 section 4.2.1.6): better said now than at the first signature.
		_, host, _ := strings.Cut(u.Email, "@")
		if a, err := mail.ParseAddress(u.Email); err != nil || a.Address != u.Email || !domain.MatchString(host) || !ascii(u.Email) {
			return nil, fmt.Errorf("user %q: not an e-mail address that a certificate can carry", u.Email)
		}
		c, err := bcrypt.Cost([]byte(u.PasswordHash))
		if err != nil {
			return nil, fmt.Errorf("user %q: the password hash is not a bcrypt hash: %w", u.Email, err)
		}
		if c < minHashCost || c > maxHashCost {
			return nil, fmt.Errorf("user %q: the password hash has cost %d, not %d to %d", u.Email, c, minHashCost, maxHashCost)
		}
		cost = max(cost, c)
		key := strings.ToLower(u.Email)
		if _, ok := d.users[key]; ok {
			return nil, fmt.Errorf("user %q is configured twice", u.Email)
		}
		id := u.ID
		if id == "" {
			sum := sha256.Sum256([]byte("sigbox user " + key))
			id = hex.EncodeToString(sum[:16])
		}
		verified := true
		name := u.Username
		if name == "" {
			name = u.Email
		}
		d.users[key] = storage.Password{Email: u.Email, EmailVerified: &verified, Hash: []byte(u.PasswordHash), Username: name, UserID: id}
	}
	// rand.Text is base32, which bcrypt's alphabet contains: 22 characters of
	// salt and 31 of hash.
	d.stranger.Hash = fmt.Appendf(nil, "$2a$%02d$%.53s", cost, rand.Text()+rand.Text()+rand.Text())
	return d, nil
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

func (d *directory) GetPassword(_ context.Context, email string) (storage.Password, error) {
	if u, ok := d.users[strings.ToLower(email)]; ok {
		return u, nil
	}
	return d.stranger, nil
}
