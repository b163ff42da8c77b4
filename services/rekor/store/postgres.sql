-- Both tables are sets, as they are in SQLite.

CREATE TABLE entry_key (
  key   BYTEA NOT NULL, -- first 16 bytes of SHA-256 of the key in lower case
  entry BYTEA NOT NULL, -- EntryID, 40 bytes
  PRIMARY KEY (key, entry),
  CHECK (length(key) = 16 AND length(entry) = 40)
);

CREATE TABLE attestation (
  key  TEXT COLLATE "C" PRIMARY KEY, -- as upstream names it, "sha256:…"
  body BYTEA NOT NULL
);
