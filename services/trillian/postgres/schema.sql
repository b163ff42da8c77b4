-- The tables that Trillian's provider works on, by the names it knows them by,
-- and the guard that keeps a log from being rolled back.

CREATE TABLE Trees (
  TreeId                BIGINT PRIMARY KEY,
  TreeState             TEXT NOT NULL CHECK (TreeState IN ('ACTIVE', 'FROZEN', 'DRAINING')),
  TreeType              TEXT NOT NULL CHECK (TreeType IN ('LOG', 'PREORDERED_LOG')),
  DisplayName           VARCHAR(20),
  Description           VARCHAR(200),
  CreateTimeMillis      BIGINT NOT NULL,
  UpdateTimeMillis      BIGINT NOT NULL,
  MaxRootDurationMillis BIGINT NOT NULL,
  Deleted               BOOLEAN,
  DeleteTimeMillis      BIGINT
);

CREATE TABLE TreeControl (
  TreeId                  BIGINT PRIMARY KEY REFERENCES Trees ON DELETE CASCADE,
  SigningEnabled          BOOLEAN NOT NULL,
  SequencingEnabled       BOOLEAN NOT NULL,
  SequenceIntervalSeconds INTEGER NOT NULL
);

-- Every root there ever was.
CREATE TABLE TreeHead (
  TreeId            BIGINT NOT NULL REFERENCES Trees,
  TreeHeadTimestamp BIGINT NOT NULL, -- nanoseconds since 1970
  TreeSize          BIGINT NOT NULL CHECK (TreeSize >= 0),
  RootHash          BYTEA NOT NULL,
  RootSignature     BYTEA NOT NULL,  -- the provider leaves it empty
  PRIMARY KEY (TreeId, TreeHeadTimestamp)
);
CREATE INDEX TreeHeadSize ON TreeHead (TreeId, TreeSize);

CREATE TABLE LeafData (
  TreeId              BIGINT NOT NULL,
  LeafIdentityHash    BYTEA NOT NULL CHECK (length(LeafIdentityHash) = 32),
  LeafValue           BYTEA NOT NULL,
  ExtraData           BYTEA,
  QueueTimestampNanos BIGINT NOT NULL,
  PRIMARY KEY (TreeId, LeafIdentityHash)
);

CREATE TABLE SequencedLeafData (
  TreeId                  BIGINT NOT NULL,
  SequenceNumber          BIGINT NOT NULL CHECK (SequenceNumber >= 0),
  LeafIdentityHash        BYTEA NOT NULL,
  MerkleLeafHash          BYTEA NOT NULL CHECK (length(MerkleLeafHash) = 32),
  IntegrateTimestampNanos BIGINT NOT NULL,
  PRIMARY KEY (TreeId, SequenceNumber),
  FOREIGN KEY (TreeId, LeafIdentityHash) REFERENCES LeafData
);
CREATE INDEX SequencedLeafMerkle ON SequencedLeafData (TreeId, MerkleLeafHash);
CREATE INDEX SequencedLeafIdentity ON SequencedLeafData (TreeId, LeafIdentityHash);

CREATE TABLE Unsequenced (
  TreeId              BIGINT NOT NULL,
  Bucket              INTEGER NOT NULL, -- the provider writes 0
  LeafIdentityHash    BYTEA NOT NULL CHECK (length(LeafIdentityHash) = 32),
  MerkleLeafHash      BYTEA NOT NULL CHECK (length(MerkleLeafHash) = 32),
  QueueTimestampNanos BIGINT NOT NULL,
  QueueID             BYTEA UNIQUE CHECK (length(QueueID) <= 32),
  PRIMARY KEY (TreeId, Bucket, QueueTimestampNanos, LeafIdentityHash)
);

CREATE TABLE Subtree (
  TreeId    BIGINT NOT NULL,
  SubtreeId BYTEA NOT NULL CHECK (length(SubtreeId) <= 255),
  Nodes     BYTEA NOT NULL,
  CONSTRAINT Subtree_pk PRIMARY KEY (TreeId, SubtreeId) -- the provider knows it by this name
);

-- Two sequencers that overlap can each read a root, and the one with nothing to
-- add then sign the older of the two again. Whoever comes second waits here for
-- the first to commit, sees what it did, and is refused.
CREATE FUNCTION guard_tree_head() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  newest TreeHead%ROWTYPE;
BEGIN
  -- In any other isolation level the look below would be at the past.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'tree heads are stored in read committed transactions only' USING ERRCODE = 'SBX01';
  END IF;
  PERFORM pg_advisory_xact_lock(NEW.TreeId);
  SELECT * INTO newest FROM TreeHead
    WHERE TreeId = NEW.TreeId ORDER BY TreeSize DESC, TreeHeadTimestamp DESC LIMIT 1;
  IF NOT FOUND THEN
    RETURN NEW;
  END IF;
  IF NEW.TreeSize < newest.TreeSize THEN
    RAISE EXCEPTION 'a root of size % after one of size % in tree %', NEW.TreeSize, newest.TreeSize, NEW.TreeId
      USING ERRCODE = 'SBX01';
  ELSIF NEW.TreeSize = newest.TreeSize AND NEW.RootHash <> newest.RootHash THEN
    RAISE EXCEPTION 'a second root of size % in tree %', NEW.TreeSize, NEW.TreeId USING ERRCODE = 'SBX01';
  ELSIF NEW.TreeHeadTimestamp <= newest.TreeHeadTimestamp THEN
    RAISE EXCEPTION 'a root with time % after one with time % in tree %', NEW.TreeHeadTimestamp, newest.TreeHeadTimestamp, NEW.TreeId
      USING ERRCODE = 'SBX01';
  END IF;
  RETURN NEW;
END;
$$;
CREATE TRIGGER guard BEFORE INSERT ON TreeHead FOR EACH ROW EXECUTE FUNCTION guard_tree_head();

-- What a log has taken in stays as it is.
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = 'SBX02';
END;
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON TreeHead EXECUTE FUNCTION append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON LeafData EXECUTE FUNCTION append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON SequencedLeafData EXECUTE FUNCTION append_only();

-- The provider calls these two after it has filled a temporary table. They do
-- without a lock on whole tables, on which the logs would wait for each other.
CREATE FUNCTION queue_leaves() RETURNS SETOF bytea LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY
    WITH fresh AS (
      INSERT INTO LeafData (TreeId, LeafIdentityHash, LeafValue, ExtraData, QueueTimestampNanos)
        SELECT t.TreeId, t.LeafIdentityHash, t.LeafValue, t.ExtraData, t.QueueTimestampNanos
          FROM TempQueueLeaves t ORDER BY 1, 2
        ON CONFLICT DO NOTHING
        RETURNING TreeId, LeafIdentityHash
    ), queued AS (
      INSERT INTO Unsequenced (TreeId, Bucket, LeafIdentityHash, MerkleLeafHash, QueueTimestampNanos, QueueID)
        SELECT t.TreeId, 0, t.LeafIdentityHash, t.MerkleLeafHash, t.QueueTimestampNanos, t.QueueID
          FROM TempQueueLeaves t JOIN fresh f USING (TreeId, LeafIdentityHash)
    )
    SELECT DISTINCT t.LeafIdentityHash FROM TempQueueLeaves t
      WHERE NOT EXISTS (SELECT 1 FROM fresh f WHERE f.TreeId = t.TreeId AND f.LeafIdentityHash = t.LeafIdentityHash);
END;
$$;

CREATE FUNCTION add_sequenced_leaves()
  RETURNS TABLE (leaf_identity_hash bytea, is_duplicate_leaf_data boolean, is_duplicate_sequenced_leaf_data boolean)
  LANGUAGE plpgsql AS $$
BEGIN
  -- For a log that is filled from elsewhere, by one writer.
  PERFORM pg_advisory_xact_lock(TreeId) FROM (SELECT DISTINCT TreeId FROM TempAddSequencedLeaves ORDER BY 1) trees;
  UPDATE TempAddSequencedLeaves t SET
    IsDuplicateLeafData = EXISTS (SELECT 1 FROM LeafData l WHERE l.TreeId = t.TreeId AND l.LeafIdentityHash = t.LeafIdentityHash),
    IsDuplicateSequencedLeafData = EXISTS (SELECT 1 FROM SequencedLeafData s WHERE s.TreeId = t.TreeId AND s.SequenceNumber = t.SequenceNumber);
  INSERT INTO LeafData (TreeId, LeafIdentityHash, LeafValue, ExtraData, QueueTimestampNanos)
    SELECT t.TreeId, t.LeafIdentityHash, t.LeafValue, t.ExtraData, t.QueueTimestampNanos
      FROM TempAddSequencedLeaves t WHERE NOT t.IsDuplicateLeafData AND NOT t.IsDuplicateSequencedLeafData;
  INSERT INTO SequencedLeafData (TreeId, LeafIdentityHash, MerkleLeafHash, SequenceNumber, IntegrateTimestampNanos)
    SELECT t.TreeId, t.LeafIdentityHash, t.MerkleLeafHash, t.SequenceNumber, 0
      FROM TempAddSequencedLeaves t WHERE NOT t.IsDuplicateLeafData AND NOT t.IsDuplicateSequencedLeafData;
  RETURN QUERY SELECT t.LeafIdentityHash, t.IsDuplicateLeafData, t.IsDuplicateSequencedLeafData FROM TempAddSequencedLeaves t;
END;
$$;
