// Package sqlite keeps Trillian's logs in SQLite files.
package sqlite
