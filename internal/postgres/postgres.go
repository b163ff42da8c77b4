// Package postgres connects to the PostgreSQL server that replicas of an
// instance share, refuses one that would lose what it acknowledged, and brings
// the instance's schema from version to version.
//
// Everything of an instance is in the schema "sigbox" of one database, so that
// it can be found, told apart from what others keep there, and removed whole.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Schema is where an instance's tables are.
const Schema = "sigbox"

// maxDSN bounds the file with the connection string, in bytes.
const maxDSN = 16 << 10

// connectTimeout bounds one attempt to connect to one host.
const connectTimeout = 5 * time.Second

// ErrUnsafe marks a server, or a way to reach it, that could lose or give away
// what it is told.
var ErrUnsafe = errors.New("postgresql is not safe to use like this")

// DSN is a connection string. It holds a password and keeps it out of logs.
type DSN struct{ text string }

// ReadDSN reads a connection string from a file.
func ReadDSN(path string) (DSN, error) {
	f, err := os.Open(path)
	if err != nil {
		return DSN{}, fmt.Errorf("reading the postgresql connection string: %w", err)
	}
	defer f.Close()
	buf := make([]byte, maxDSN+1)
	n := 0
	for n < len(buf) {
		m, err := f.Read(buf[n:])
		n += m
		if err != nil {
			break // the end, or what Parse will find missing
		}
	}
	if n > maxDSN {
		return DSN{}, fmt.Errorf("the postgresql connection string in %s is longer than %d bytes", path, maxDSN)
	}
	d := DSN{strings.TrimSpace(string(buf[:n]))}
	if _, err := d.Config(); err != nil {
		return DSN{}, fmt.Errorf("the postgresql connection string in %s: %w", path, err)
	}
	return d, nil
}

// NewDSN takes a connection string, a URL or a list of key=value.
func NewDSN(text string) DSN { return DSN{text} }

// String says nothing of the content.
func (DSN) String() string { return "(postgresql connection string)" }

// GoString does not either.
func (d DSN) GoString() string { return d.String() }

var sslmode = regexp.MustCompile(`(^|\s)sslmode\s*=`)

// Config parses the connection string. Beyond this machine TLS with a verified
// certificate and host name is the default, and less is refused.
func (d DSN) Config() (*pgxpool.Config, error) {
	if d.text == "" {
		return nil, errors.New("it is empty")
	}
	text, explicit := d.text, sslmode.MatchString(d.text)
	isURL := strings.HasPrefix(text, "postgres://") || strings.HasPrefix(text, "postgresql://")
	if isURL {
		_, query, _ := strings.Cut(text, "?")
		values, err := url.ParseQuery(query)
		if err != nil {
			return nil, errors.New("its query does not parse") // the error would quote it
		}
		explicit = values.Has("sslmode")
	}
	if !explicit {
		// Said explicitly, so that no environment variable can say otherwise. A
		// loopback host gets TLS if it offers it.
		mode := "verify-full"
		if probe, err := pgxpool.ParseConfig(withMode(text, isURL, "disable")); err == nil && allLocal(probe.ConnConfig) {
			mode = "prefer"
		}
		text = withMode(text, isURL, mode)
	}
	cfg, err := pgxpool.ParseConfig(text)
	if err != nil {
		// pgx takes the password out of its message.
		return nil, err
	}
	if cfg.ConnConfig.Database == "" || cfg.ConnConfig.User == "" {
		return nil, errors.New("it names no database or no user")
	}
	if err := checkTLS(cfg.ConnConfig); err != nil {
		return nil, err
	}
	return cfg, nil
}

func withMode(text string, isURL bool, mode string) string {
	switch {
	case !isURL:
		return text + " sslmode=" + mode
	case strings.Contains(text, "?"):
		return text + "&sslmode=" + mode
	default:
		return text + "?sslmode=" + mode
	}
}

// local tells whether nobody outside of this machine is on the way to a host.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

func allLocal(c *pgx.ConnConfig) bool {
	ok := local(c.Host)
	for _, f := range c.Fallbacks {
		ok = ok && local(f.Host)
	}
	return ok
}

func checkTLS(c *pgx.ConnConfig) error {
	hosts := append([]*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}, c.Fallbacks...)
	for _, h := range hosts {
		switch {
		case local(h.Host):
		case h.TLSConfig == nil:
			return fmt.Errorf("%w: host %s is not this machine and sslmode allows no TLS: use sslmode=verify-full", ErrUnsafe, h.Host)
		case h.TLSConfig.InsecureSkipVerify || h.TLSConfig.ServerName == "":
			return fmt.Errorf("%w: host %s is not this machine and sslmode does not verify its name: use sslmode=verify-full with sslrootcert", ErrUnsafe, h.Host)
		}
	}
	return nil
}

// Options are about one pool.
type Options struct {
	// Name is shown in the server's list of connections.
	Name string
	// MaxConns bounds the connections of this pool.
	MaxConns int32
	// Prepare and Release are called on a connection before it is used and when
	// it is given back; nil does nothing.
	Prepare func(context.Context, *pgx.Conn) (bool, error)
	Release func(*pgx.Conn) bool
}

// Open makes a pool. It connects once, so that what is wrong is said at the
// start. Each connection, now and later, is checked by [check].
func Open(ctx context.Context, dsn DSN, opts Options) (*pgxpool.Pool, error) {
	cfg, err := dsn.Config()
	if err != nil {
		return nil, fmt.Errorf("the postgresql connection string: %w", err)
	}
	if opts.MaxConns > 0 {
		cfg.MaxConns = opts.MaxConns
	}
	cfg.MaxConnIdleTime = 10 * time.Minute
	cfg.PingTimeout = 2 * time.Second
	cfg.AfterConnect = check
	cfg.PrepareConn = opts.Prepare
	cfg.AfterRelease = opts.Release
	cc := cfg.ConnConfig
	cc.ConnectTimeout = connectTimeout
	// A server that has become a standby takes no writes: look for another host.
	cc.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	for name, value := range map[string]string{
		"application_name": opts.Name,
		// pg_temp is looked at first in any case.
		"search_path": Schema,
		// A client that died must not keep its locks until the kernel gives up on
		// the connection.
		"tcp_user_timeout":    "10000",
		"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3",
		"client_connection_check_interval":    "2000",
		"idle_in_transaction_session_timeout": "60000",
		"lock_timeout":                        "10000",
		"default_transaction_isolation":       "read committed",
		"timezone":                            "UTC",
	} {
		cc.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("opening postgresql: %w", err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("connecting to postgresql: %w", err)
	}
	return pool, nil
}

// minVersion is the oldest server that the statements are tested with.
const minVersion = 140000

// check refuses a connection over which "committed" would not mean durable, or
// on which session locks would not hold.
func check(ctx context.Context, c *pgx.Conn) error {
	var (
		fsync, pages, synchronous, isolation string
		version                              int
		backend                              uint32
	)
	err := c.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_commit'),
		current_setting('default_transaction_isolation'), current_setting('server_version_num')::int, pg_backend_pid()`).
		Scan(&fsync, &pages, &synchronous, &isolation, &version, &backend)
	if err != nil {
		return fmt.Errorf("reading the server's settings: %w", err)
	}
	switch {
	case version < minVersion:
		return fmt.Errorf("%w: server version %d is older than 14", ErrUnsafe, version/10000)
	case fsync != "on":
		return fmt.Errorf("%w: fsync is %s: a power cut would lose signed entries", ErrUnsafe, fsync)
	case pages != "on":
		return fmt.Errorf("%w: full_page_writes is %s: a power cut would damage tables", ErrUnsafe, pages)
	case synchronous != "on" && synchronous != "remote_apply":
		return fmt.Errorf("%w: synchronous_commit is %s: what is committed might be lost; it must be on or remote_apply", ErrUnsafe, synchronous)
	case isolation != "read committed":
		return fmt.Errorf("%w: default_transaction_isolation is %s and can not be changed", ErrUnsafe, isolation)
	case backend != c.PgConn().PID():
		// The locks that keep two replicas apart belong to a session.
		return fmt.Errorf("%w: a connection pooler is in between: connect to the server itself", ErrUnsafe)
	}
	return nil
}
