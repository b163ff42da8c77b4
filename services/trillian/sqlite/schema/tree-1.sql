-- One row, so that a file can not be taken for another tree's.
CREATE TABLE tree (
    id INTEGER PRIMARY KEY
);

-- The entries, in the order of the log. Rows are appended and never changed.
CREATE TABLE leaves (
    idx        INTEGER PRIMARY KEY,
    queued     INTEGER NOT NULL, -- nanoseconds since 1970
    integrated INTEGER NOT NULL, -- nanoseconds since 1970
    merkle     BLOB NOT NULL,
    identity   BLOB,             -- NULL: the same as merkle
    value      BLOB NOT NULL,
    extra      BLOB,
    sum        INTEGER NOT NULL  -- checksum of what the Merkle leaf hash says nothing about
);

-- Finds a leaf by its Merkle leaf hash or by its identity hash. Eight bytes of the hash are enough to find
-- it, and the row that is found tells whether it is the one.
CREATE TABLE hashes (
    prefix INTEGER NOT NULL,
    leaf   INTEGER NOT NULL,
    PRIMARY KEY (prefix, leaf)
) WITHOUT ROWID;

-- Entries that wait for a sequencing pass, in the order of arrival.
CREATE TABLE queue (
    id       INTEGER PRIMARY KEY,
    queued   INTEGER NOT NULL,
    prefix   INTEGER NOT NULL, -- of the identity hash
    merkle   BLOB NOT NULL,
    identity BLOB,
    value    BLOB NOT NULL,
    extra    BLOB,
    sum      INTEGER NOT NULL
);
CREATE INDEX queue_prefix ON queue (prefix);

-- The tree's stored nodes as one long array of hashes in the order in which they come to be, cut into rows of nearly a
-- page. Each row also has the log root as it was when the row was last written: the newest row's is the root of the tree.
CREATE TABLE nodes (
    chunk  INTEGER PRIMARY KEY,
    hashes BLOB NOT NULL,
    root   BLOB NOT NULL,
    sum    INTEGER NOT NULL -- checksum of chunk and root; the hashes are checked by computing them
);
