-- What an instance is. The row is the last thing that init writes.
CREATE TABLE instance (
  one     BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one), -- row
  id      TEXT NOT NULL,
  -- Grows when the database is put back from a backup: replicas that knew the
  -- one before must not go on.
  epoch   BIGINT NOT NULL,
  content JSONB NOT NULL, -- as instance.json has it for SQLite
  keys    JSONB NOT NULL  -- SHA-256 of each online key's public half, by file name
);

-- The TUF repository that is served, by path.
CREATE TABLE tuf_file (
  name TEXT COLLATE "C" PRIMARY KEY,
  data BYTEA NOT NULL
);
