package sqlite

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	engine "modernc.org/sqlite/lib"

	"github.com/sigbox/sigbox/internal/durable"
)

// Schemas are numbered from one, and PRAGMA user_version tells how many of them a file has had.
//
//go:embed schema/*.sql
var schemas embed.FS

// kind is one of the two sorts of file. application_id tells them from each other and from other people's databases.
type kind struct {
	name        string
	application int64
	version     int
}

var (
	treesFile = kind{name: "trees", application: 0x73624354, version: 1} // "sbCT"
	treeFile  = kind{name: "tree", application: 0x73624c54, version: 1}  // "sbLT"
)

// pageSize is SQLite's page, the unit in which the write-ahead log and the database grow. Bigger pages pack entries of two to three
// kilobytes better, smaller ones write less for a lone entry.
const pageSize = 8192

// migration is the script that takes a file from version-1 to version.
func (k kind) migration(version int) (string, error) {
	b, err := schemas.ReadFile(fmt.Sprintf("schema/%s-%d.sql", k.name, version))
	return string(b), err
}

// create makes the file with the present schema. The name appears only once the file is whole and durable; fill may
// add rows before.
func (k kind) create(path string, fill func(*conn) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, ErrExists)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	temp := path + ".new"
	if err := removeDatabase(temp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeDatabase(temp))
		}
	}()
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	defer f.Close()
	// SQLite gives the files beside it the same mode.
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	c, err := openConn(temp, false)
	if err != nil {
		return err
	}
	err = func() error {
		// The page size can be set only while the file is empty, so before the journal mode writes to it.
		if err := c.exec(fmt.Sprintf("PRAGMA page_size = %d; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL", pageSize)); err != nil {
			return err
		}
		if err := k.migrate(c, 0); err != nil {
			return err
		}
		if fill != nil {
			return fill(c)
		}
		return nil
	}()
	if err := errors.Join(err, c.close()); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("creating %s: %w", path, err)
	}
	return durable.SyncDir(filepath.Dir(path))
}

// open opens the file for writing, brings its schema up to date and sees that it is as durable as it has to be.
func (k kind) open(path string) (_ *conn, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrMissing)
	} else if err != nil {
		return nil, err
	}
	c, err := openConn(path, false)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, openError(err))
	}
	defer func() {
		if err != nil {
			c.leaveWAL()
			err = fmt.Errorf("opening %s: %w", path, errors.Join(openError(err), c.close()))
		}
	}()
	if c.readOnly() {
		return nil, ErrReadOnly
	}
	if err := k.recognise(c); err != nil {
		return nil, err
	}
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return nil, err
	}
	if err := c.configure(); err != nil {
		return nil, err
	}
	if err := k.migrate(c, int(version)); err != nil {
		return nil, err
	}
	return c, nil
}

// openAtRest opens the file to read it while nobody else does.
func (k kind) openAtRest(path string) (_ *conn, err error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", path, ErrMissing)
	} else if err != nil {
		return nil, err
	}
	c, err := openAtRest(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, openError(err))
	}
	err = c.exec("PRAGMA query_only = ON; PRAGMA cache_size = -2048; PRAGMA mmap_size = 0; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")
	if err == nil {
		err = k.recognise(c)
	}
	if err == nil {
		var version int64
		if version, err = c.number("PRAGMA user_version"); err == nil && version != int64(k.version) {
			err = fmt.Errorf("%w: version %d, this program reads %d: serve brings it up to date", ErrForeign, version, k.version)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, errors.Join(openError(err), c.close()))
	}
	return c, nil
}

// recognise tells the file from another application's and from one of a later version of this one.
func (k kind) recognise(c *conn) error {
	application, err := c.number("PRAGMA application_id")
	if err != nil {
		return err
	}
	if application != k.application {
		return fmt.Errorf("%w: application id %#x, want %#x", ErrForeign, application, k.application)
	}
	version, err := c.number("PRAGMA user_version")
	if err != nil {
		return err
	}
	switch {
	case version > int64(k.version):
		return fmt.Errorf("%w: version %d, this program knows up to %d", ErrNewer, version, k.version)
	case version < 1:
		return fmt.Errorf("%w: version %d", ErrForeign, version)
	}
	return nil
}

// openError names the reason a file was refused where SQLite has a code for it.
func openError(err error) error {
	var e *engineError
	if !errors.As(err, &e) {
		return err
	}
	switch e.primary() {
	case engine.SQLITE_NOTADB:
		return fmt.Errorf("%w: %w", ErrForeign, err)
	case engine.SQLITE_CORRUPT:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case engine.SQLITE_READONLY, engine.SQLITE_PERM, engine.SQLITE_CANTOPEN:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return err
}

// configure sets what belongs to the connection and not to the file, then asks SQLite what it made of it: a setting that it
// does not take is ignored without an error.
func (c *conn) configure() error {
	const settings = `PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 0;
PRAGMA journal_size_limit = -1;
PRAGMA cache_size = -2048;
PRAGMA mmap_size = 0;
PRAGMA temp_store = MEMORY;
PRAGMA trusted_schema = OFF;
PRAGMA cell_size_check = ON`
	if err := c.exec(settings); err != nil {
		return err
	}
	for _, want := range []struct{ pragma, value string }{
		{"journal_mode", "wal"},
		{"synchronous", "2"},
		{"page_size", strconv.Itoa(pageSize)},
		{"wal_autocheckpoint", "0"},
		{"locking_mode", "normal"},
	} {
		got, err := c.value("PRAGMA " + want.pragma)
		if err != nil {
			return err
		}
		if got != want.value {
			return fmt.Errorf("%w: %s is %q, want %q", ErrForeign, want.pragma, got, want.value)
		}
	}
	return nil
}

// migrate applies the schemas after version, each in a transaction of its own together with its number.
func (k kind) migrate(c *conn, version int) error {
	for v := version + 1; v <= k.version; v++ {
		script, err := k.migration(v)
		if err != nil {
			return err
		}
		err = c.exec(fmt.Sprintf("BEGIN IMMEDIATE;\n%s\nPRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", script, k.application, v))
		if err != nil {
			if c.inTransaction() {
				err = errors.Join(err, c.exec("ROLLBACK"))
			}
			return fmt.Errorf("schema version %d: %w", v, err)
		}
	}
	return nil
}

func (c *conn) number(sql string) (int64, error) {
	text, err := c.value(sql)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: %s is %q", ErrForeign, sql, text)
	}
	return n, nil
}

// removeDatabase removes a database and the files SQLite keeps beside it, if they are there.
func removeDatabase(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
