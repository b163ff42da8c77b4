// Package issuer holds the two OpenID Connect issuers of an instance: one for
// jobs, at ORIGIN/ci, and one for people, at ORIGIN/oidc. Their tokens have the
// audience "sigstore" and are what Fulcio exchanges for a certificate.
//
// # The issuer for jobs
//
// [CI] signs short-lived tokens for jobs whose own platform issues none. Whoever
// may ask for one (the administrator, over the administration socket) names the
// subject; each token buys one certificate and is then spent.
//
// Fulcio gets the identity from one issuer entry: type "email", client id
// "sigstore", no issuer claim, no subject domain. The types that carry a free
// name were weighed and left:
//
//   - "uri" makes every identity a URL below the issuer's host, so that
//     identities change when the instance is renamed, and nobody types them
//     from memory;
//   - "username" makes an otherName, NAME!DOMAIN, that few tools display, and
//     refuses names that are e-mail addresses;
//   - "ci-provider" makes a URI out of any claim, a relative one for a plain
//     name, which RFC 5280 section 4.2.1.6 forbids and certificate linting
//     refuses.
//
// An e-mail address is what every Sigstore client compares as a plain string.
// So the subject ci@example.com becomes the identity ci@example.com, and a
// subject without "@", such as build/main, becomes build/main@ci.internal: the
// domain is one that no mail can ever reach, so that a job's name is never a
// person's address. sub and email hold the same string and email_verified is
// true; clients sign the one, Fulcio reads the other. A verifier must pin the
// issuer as well as the identity, as always: this issuer vouches for whatever
// name its administrator typed.
//
// # The issuer for people
//
// [People] is Dex with its state in a SQLite file of ours: local users with
// bcrypt hashes, or any upstream that Dex has a connector for. What Dex leaves
// open is closed in front of it: the code flow needs PKCE with S256, only the
// granted flows have endpoints, guessing is throttled, bodies are bounded and
// panics are contained. Fulcio's entry for it is of type "email" too.
package issuer
