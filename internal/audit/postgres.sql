-- The record, line by line. Each line names the SHA-256 of the one before it, so
-- that one that is changed, removed or moved breaks the chain there.
CREATE TABLE audit_line (
  seq   BIGINT PRIMARY KEY CHECK (seq > 0),
  line  TEXT NOT NULL,          -- as it is exported, with its line feed
  sum   BYTEA NOT NULL CHECK (sum = sha256(convert_to(line, 'UTF8'))),
  batch BYTEA NOT NULL          -- what was written together
);
CREATE INDEX audit_line_batch ON audit_line (batch);

-- One writer at a time has the end of the chain. Writing a batch again changes
-- nothing: the first attempt may have been committed unheard.
CREATE FUNCTION append_audit(the_batch BYTEA, bodies TEXT[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  number BIGINT;
  prev BYTEA;
  body TEXT;
  new_line TEXT;
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION 'the record is written in read committed transactions only';
  END IF;
  PERFORM pg_advisory_xact_lock(1935829364, 0); -- "sbat"
  IF EXISTS (SELECT 1 FROM audit_line WHERE batch = the_batch) THEN
    RETURN;
  END IF;
  SELECT seq, sum INTO number, prev FROM audit_line ORDER BY seq DESC LIMIT 1;
  IF NOT FOUND THEN
    number := 0;
    prev := decode(repeat('00', 32), 'hex');
  END IF;
  FOREACH body IN ARRAY bodies LOOP
    number := number + 1;
    new_line := '{"seq":' || number || ',"prev":"' || encode(prev, 'hex') || '",' || substr(body, 2) || E'\n';
    prev := sha256(convert_to(new_line, 'UTF8'));
    INSERT INTO audit_line (seq, line, sum, batch) VALUES (number, new_line, prev, the_batch);
  END LOOP;
END;
$$;

CREATE FUNCTION audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit record is append-only';
END;
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_line EXECUTE FUNCTION audit_is_append_only();
