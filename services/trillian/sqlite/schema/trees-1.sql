-- The catalogue of trees. The description is Trillian's own message, so that fields it gains need no migration.
CREATE TABLE trees (
    id   INTEGER PRIMARY KEY,
    tree BLOB NOT NULL -- trillian.Tree, protobuf
);
