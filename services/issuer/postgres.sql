-- Dex's objects, as in SQLite.
CREATE TABLE object (
  kind     TEXT COLLATE "C" NOT NULL,
  id       TEXT COLLATE "C" NOT NULL,
  revision BIGINT NOT NULL, -- grows with each change of the value
  expiry   BIGINT,          -- seconds since 1970; NULL: never collected
  value    BYTEA NOT NULL,
  PRIMARY KEY (kind, id)
);
CREATE INDEX object_expiry ON object (expiry) WHERE expiry IS NOT NULL;

-- Tokens of the issuer for jobs that have bought their certificate.
CREATE TABLE redeemed_token (
  id     BYTEA PRIMARY KEY CHECK (length(id) = 16),
  expiry BIGINT NOT NULL, -- seconds since 1970
  claim  BYTEA NOT NULL   -- of the call that redeemed it
);
CREATE INDEX redeemed_token_expiry ON redeemed_token (expiry);

-- The latest expiry among the tokens that are forgotten: none that expires no
-- later is redeemed any more, so that a clock set back revives none.
CREATE TABLE redeemed_forgotten (
  one    BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one), -- row
  expiry BIGINT NOT NULL
);
INSERT INTO redeemed_forgotten (expiry) VALUES (0);
