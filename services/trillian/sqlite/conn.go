package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"syscall"
	"unsafe"

	"modernc.org/libc"
	"modernc.org/libc/sys/types"
	_ "modernc.org/sqlite" // applies the library's own start-up fixes
	engine "modernc.org/sqlite/lib"
)

// conn is one SQLite connection and the statements kept prepared on it. database/sql is left out on purpose: it copies
// every value twice and looks each column's name and type up again for each query, which costs more here than SQLite itself.
// A conn is used by one goroutine at a time.
type conn struct {
	tls   *libc.TLS
	db    uintptr
	stmts []*stmt
	out   uintptr // two int32 for results returned by pointer
}

type stmt struct {
	c      *conn
	handle uintptr
	params []buffer
}

// buffer holds a parameter outside of Go's heap between two uses of a statement, as SQLite reads it in place.
type buffer struct {
	p   uintptr
	cap int
}

// keptBuffer is the largest parameter buffer kept after its statement is reset.
const keptBuffer = 64 << 10

// engineError is what SQLite said.
type engineError struct {
	code int32 // extended result code
	msg  string
}

func (e *engineError) Error() string { return fmt.Sprintf("sqlite: %s (%d)", e.msg, e.code) }

func (e *engineError) primary() int32 { return e.code & 0xff }

func openConn(path string, readOnly bool) (*conn, error) {
	// No CREATE: a missing file is an error of its own, never a new log. NOMUTEX: callers serialise.
	flags := int32(engine.SQLITE_OPEN_READWRITE | engine.SQLITE_OPEN_NOMUTEX | engine.SQLITE_OPEN_EXRESCODE)
	if readOnly {
		flags = engine.SQLITE_OPEN_READONLY | engine.SQLITE_OPEN_NOMUTEX | engine.SQLITE_OPEN_EXRESCODE
	}
	return openFlags(path, flags)
}

// openAtRest opens a file that no process has open, without writing anything anywhere.
func openAtRest(path string) (*conn, error) {
	wal, err := os.Stat(path + "-wal")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err == nil && wal.Size() > 0 {
		// What a crash left there belongs to the file, so that the index beside it has to be made.
		return openConn(path, true)
	}
	uri := (&url.URL{Scheme: "file", Path: path, RawQuery: "immutable=1"}).String()
	return openFlags(uri, engine.SQLITE_OPEN_READONLY|engine.SQLITE_OPEN_NOMUTEX|engine.SQLITE_OPEN_EXRESCODE|engine.SQLITE_OPEN_URI)
}

func openFlags(path string, flags int32) (*conn, error) {
	c := &conn{tls: libc.NewTLS()}
	c.out = libc.Xmalloc(c.tls, 16)
	name, err := libc.CString(path)
	if err != nil {
		c.release()
		return nil, err
	}
	defer libc.Xfree(c.tls, name)

	rc := engine.Xsqlite3_open_v2(c.tls, name, c.out, flags, 0)
	c.db = *(*uintptr)(pointer(c.out))
	if rc != engine.SQLITE_OK {
		err := c.fail(rc)
		c.release()
		return nil, err
	}
	engine.Xsqlite3_busy_timeout(c.tls, c.db, 10_000)
	return c, nil
}

// pointer spells out that p is memory of the C heap, which Go's collector neither owns nor moves.
func pointer(p uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&p)) }

func (c *conn) fail(rc int32) error {
	e := &engineError{code: rc, msg: libc.GoString(engine.Xsqlite3_errstr(c.tls, rc))}
	if c.db != 0 {
		if msg := libc.GoString(engine.Xsqlite3_errmsg(c.tls, c.db)); msg != e.msg {
			e.msg += ": " + msg
		}
		switch e.primary() {
		case engine.SQLITE_IOERR, engine.SQLITE_CANTOPEN, engine.SQLITE_FULL:
			if errno := engine.Xsqlite3_system_errno(c.tls, c.db); errno != 0 {
				e.msg += ": " + syscall.Errno(errno).Error()
			}
		}
	}
	return e
}

func (c *conn) close() error {
	for _, s := range c.stmts {
		s.finalize()
	}
	c.stmts = nil
	var err error
	if rc := engine.Xsqlite3_close(c.tls, c.db); rc != engine.SQLITE_OK {
		err = c.fail(rc)
	}
	c.db = 0
	c.release()
	return err
}

func (c *conn) release() {
	if c.db != 0 {
		engine.Xsqlite3_close_v2(c.tls, c.db)
		c.db = 0
	}
	libc.Xfree(c.tls, c.out)
	c.tls.Close()
}

// leaveWAL makes closing the connection write nothing: what is on the disk is no longer trusted.
func (c *conn) leaveWAL() {
	args := libc.Xmalloc(c.tls, 16)
	defer libc.Xfree(c.tls, args)
	engine.Xsqlite3_db_config(c.tls, c.db, engine.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, libc.VaList(args, int32(1), uintptr(0)))
}

func (c *conn) readOnly() bool {
	name, err := libc.CString("main")
	if err != nil {
		return true
	}
	defer libc.Xfree(c.tls, name)
	return engine.Xsqlite3_db_readonly(c.tls, c.db, name) != 0
}

func (c *conn) inTransaction() bool { return engine.Xsqlite3_get_autocommit(c.tls, c.db) == 0 }

// exec runs statements that return nothing of interest.
func (c *conn) exec(sql string) error {
	s, err := libc.CString(sql)
	if err != nil {
		return err
	}
	defer libc.Xfree(c.tls, s)
	if rc := engine.Xsqlite3_exec(c.tls, c.db, s, 0, 0, 0); rc != engine.SQLITE_OK {
		return c.fail(rc)
	}
	return nil
}

// value returns the first column of the first row as text; no row is the empty string.
func (c *conn) value(sql string) (string, error) {
	s, err := c.compile(sql, 0)
	if err != nil {
		return "", err
	}
	defer s.finalize()
	row, err := s.step()
	if err != nil || !row {
		return "", err
	}
	return libc.GoString(engine.Xsqlite3_column_text(c.tls, s.handle, 0)), nil
}

// prepare compiles a statement that lives as long as its connection.
func (c *conn) prepare(sql string) (*stmt, error) {
	s, err := c.compile(sql, engine.SQLITE_PREPARE_PERSISTENT)
	if err == nil {
		c.stmts = append(c.stmts, s)
	}
	return s, err
}

func (c *conn) compile(sql string, flags uint32) (*stmt, error) {
	z, err := libc.CString(sql)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(c.tls, z)
	if rc := engine.Xsqlite3_prepare_v3(c.tls, c.db, z, -1, flags, c.out, 0); rc != engine.SQLITE_OK {
		return nil, c.fail(rc)
	}
	s := &stmt{c: c, handle: *(*uintptr)(pointer(c.out))}
	s.params = make([]buffer, engine.Xsqlite3_bind_parameter_count(c.tls, s.handle))
	return s, nil
}

// checkpointMode is how much a checkpoint may wait for.
type checkpointMode int32

const (
	// passive moves what it can without waiting for anybody.
	passive checkpointMode = engine.SQLITE_CHECKPOINT_PASSIVE
	// restart moves everything and makes the next writer start at the head of the file.
	restart checkpointMode = engine.SQLITE_CHECKPOINT_RESTART
)

// checkpoint moves frames from the write-ahead log to the database. It returns how many frames the log holds and how many
// of them are moved.
func (c *conn) checkpoint(mode checkpointMode) (frames, moved int, err error) {
	rc := engine.Xsqlite3_wal_checkpoint_v2(c.tls, c.db, 0, int32(mode), c.out, c.out+4)
	if rc != engine.SQLITE_OK {
		return 0, 0, c.fail(rc)
	}
	return int(*(*int32)(pointer(c.out))), int(*(*int32)(pointer(c.out + 4))), nil
}

// pagesWritten counts the pages this connection wrote to the write-ahead log since the last call.
func (c *conn) pagesWritten() int {
	rc := engine.Xsqlite3_db_status(c.tls, c.db, engine.SQLITE_DBSTATUS_CACHE_WRITE, c.out, c.out+4, 1)
	if rc != engine.SQLITE_OK {
		return 0
	}
	return int(*(*int32)(pointer(c.out)))
}

func (s *stmt) finalize() {
	for _, b := range s.params {
		libc.Xfree(s.c.tls, b.p)
	}
	s.params = nil
	engine.Xsqlite3_finalize(s.c.tls, s.handle)
	s.handle = 0
}

// bindInt sets parameter i, counted from one. Binding fails only for an index or a size that SQLite does not know, which
// step then reports, so that callers check once.
func (s *stmt) bindInt(i int, v int64) {
	engine.Xsqlite3_bind_int64(s.c.tls, s.handle, int32(i), v)
}

// bindBlob copies b; nil is NULL, an empty slice is an empty blob.
func (s *stmt) bindBlob(i int, b []byte) error {
	if b == nil {
		engine.Xsqlite3_bind_null(s.c.tls, s.handle, int32(i))
		return nil
	}
	m := &s.params[i-1]
	if m.p == 0 || m.cap < len(b) {
		// Freed memory must not stay bound.
		engine.Xsqlite3_bind_null(s.c.tls, s.handle, int32(i))
		libc.Xfree(s.c.tls, m.p)
		m.cap = max(len(b), 64)
		if m.p = libc.Xmalloc(s.c.tls, types.Size_t(m.cap)); m.p == 0 {
			m.cap = 0
			return s.c.fail(engine.SQLITE_NOMEM)
		}
	}
	copy(libc.GoBytes(m.p, len(b)), b)
	// SQLITE_STATIC: the buffer stays as it is until the parameter is bound again.
	if rc := engine.Xsqlite3_bind_blob(s.c.tls, s.handle, int32(i), m.p, int32(len(b)), 0); rc != engine.SQLITE_OK {
		return s.c.fail(rc)
	}
	return nil
}

// step runs the statement up to its next row. Without a row, or on an error, the statement is reset.
func (s *stmt) step() (bool, error) {
	switch rc := engine.Xsqlite3_step(s.c.tls, s.handle); rc {
	case engine.SQLITE_ROW:
		return true, nil
	case engine.SQLITE_DONE:
		s.reset()
		return false, nil
	default:
		err := s.c.fail(rc)
		s.reset()
		return false, err
	}
}

// run steps a statement that returns no rows.
func (s *stmt) run() error {
	row, err := s.step()
	if row {
		s.reset()
	}
	return err
}

// reset ends the statement, and with it the read transaction it may hold.
func (s *stmt) reset() {
	engine.Xsqlite3_reset(s.c.tls, s.handle)
	for i := range s.params {
		if m := &s.params[i]; m.cap > keptBuffer {
			engine.Xsqlite3_bind_null(s.c.tls, s.handle, int32(i+1))
			libc.Xfree(s.c.tls, m.p)
			*m = buffer{}
		}
	}
}

func (s *stmt) columnInt(i int) int64 {
	return engine.Xsqlite3_column_int64(s.c.tls, s.handle, int32(i))
}

func (s *stmt) columnNull(i int) bool {
	return engine.Xsqlite3_column_type(s.c.tls, s.handle, int32(i)) == engine.SQLITE_NULL
}

// columnBlob returns a copy; NULL is nil, and so is a value that SQLite had no memory to return.
func (s *stmt) columnBlob(i int) []byte {
	p := engine.Xsqlite3_column_blob(s.c.tls, s.handle, int32(i))
	n := int(engine.Xsqlite3_column_bytes(s.c.tls, s.handle, int32(i)))
	if p == 0 {
		if n == 0 && !s.columnNull(i) {
			return []byte{}
		}
		return nil
	}
	b := make([]byte, n)
	copy(b, libc.GoBytes(p, n))
	return b
}
