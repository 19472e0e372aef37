//! The journal's shape, and the way from each older one to the next. A migration that was released is never edited.

/// The way to each version: the first makes version 1 of nothing.
pub(super) const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE schema (version INTEGER PRIMARY KEY, applied_ms INTEGER NOT NULL) STRICT;

CREATE TABLE call (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    namespace   TEXT NOT NULL,
    name        TEXT NOT NULL,
    state       INTEGER NOT NULL DEFAULT 0, -- 0 waits (or runs), 1 done, 2 dead, 3 cancelled
    due_ms      INTEGER NOT NULL,
    since_ms    INTEGER NOT NULL,           -- when it was due first
    accepted_ms INTEGER NOT NULL,
    ended_ms    INTEGER,
    size        INTEGER NOT NULL,           -- what it counts for while it waits
    kept        INTEGER NOT NULL DEFAULT 0, -- what it counts for once it has ended
    attempts    INTEGER NOT NULL DEFAULT 0,
    deferred    INTEGER NOT NULL DEFAULT 0,
    status      INTEGER,
    reason      TEXT,
    key         TEXT,                       -- idempotency
    head        TEXT NOT NULL,              -- JSON: what was asked, without its body
    history     TEXT NOT NULL DEFAULT '[]', -- JSON: the attempts
    answer      TEXT,                       -- JSON: what was answered, without its body
    answer_body BLOB,
    file        TEXT,                       -- digest of a body that is a file
    body        BLOB,
    CHECK ((ended_ms IS NULL) = (state = 0))
) STRICT;

CREATE INDEX call_function ON call (namespace, name, seq);
CREATE INDEX call_waiting ON call (seq, namespace, name, due_ms, size) WHERE state = 0;
CREATE INDEX call_ended ON call (state, ended_ms, seq, kept) WHERE state > 0;
CREATE INDEX call_key ON call (namespace, name, key) WHERE key IS NOT NULL;
CREATE INDEX call_file ON call (file) WHERE file IS NOT NULL;
",
    "
ALTER TABLE call ADD COLUMN deliver_ms INTEGER;                    -- when its callback is due, while one is
ALTER TABLE call ADD COLUMN deliveries INTEGER NOT NULL DEFAULT 0; -- how often that was tried
CREATE INDEX call_deliver ON call (deliver_ms, seq) WHERE deliver_ms IS NOT NULL;
",
    "
CREATE TABLE delivery (
    seq    INTEGER NOT NULL,           -- the call's
    number INTEGER NOT NULL,           -- which one of its parcels, those of earlier ends counted
    parcel TEXT NOT NULL,              -- JSON
    due_ms INTEGER NOT NULL,
    tries  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (seq, number)
) STRICT, WITHOUT ROWID;
INSERT INTO delivery SELECT seq, 0, '\"callback\"', deliver_ms, deliveries FROM call WHERE deliver_ms IS NOT NULL;
DROP INDEX call_deliver;
ALTER TABLE call DROP COLUMN deliver_ms;
ALTER TABLE call DROP COLUMN deliveries;

ALTER TABLE call ADD COLUMN parcels INTEGER NOT NULL DEFAULT 0; -- how many it has had
ALTER TABLE call ADD COLUMN order_key TEXT;
ALTER TABLE call ADD COLUMN trigger TEXT;                       -- that of its origin
ALTER TABLE call ADD COLUMN origin TEXT;                        -- JSON
UPDATE call SET parcels = 1 WHERE seq IN (SELECT seq FROM delivery);

-- Every list is made of runs of these and of `call_waiting`.
CREATE INDEX call_over ON call (namespace, state, seq) WHERE state > 0;
DROP INDEX call_function;
CREATE INDEX call_function ON call (namespace, name, state, seq);
CREATE INDEX call_trigger ON call (namespace, trigger, state, seq) WHERE trigger IS NOT NULL;
-- What a start reads is in it.
DROP INDEX call_waiting;
CREATE INDEX call_waiting ON call (namespace, seq, name, due_ms, size, order_key) WHERE state = 0;

CREATE TABLE cursor (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
",
    "
-- Of what has ended only. What waits of a function is looked for among what waits of its namespace: an index for it would cost each call
-- an entry when it is accepted, and its removal when it ends.
DROP INDEX call_function;
CREATE INDEX call_function ON call (namespace, name, state, seq) WHERE state > 0;
",
    "
ALTER TABLE delivery ADD COLUMN last TEXT; -- why it failed last
ALTER TABLE call ADD COLUMN told TEXT;     -- JSON: what became of its latest deliveries that are over
",
];
