"""The dispatcher's tables. Rows are the only truth about a lease, so what must never break is a constraint here.

A slice has one result, a lease has one hand-in, a key uses a counter once and a session's number for one key, a job has
one copy of each number, a unit one standing fault. One text serves both databases: it is written in PostgreSQL's
types, and `for_sqlite` says the same in SQLite's.

Times are milliseconds of the database's clock, money millionths of the currency unit.
"""

from __future__ import annotations

VERSION = "5"
"""Of the tables; kept in `settings`. A book of another version is refused, never guessed at."""

TABLES = """
CREATE TABLE IF NOT EXISTS settings (
    name TEXT PRIMARY KEY, value TEXT NOT NULL
);

-- `shorts`: leases given back in a row as too long; `faults`: leases that failed in a row. `agreed` and `disagreed`
-- count jobs that were checked: right in a row, and wrong ever; `odd_bits` those whose values were right and whose bits
-- were not its class's. `ledger_fault` is what
-- stands against its ledger, '' where nothing does.
-- `keyid` and what goes with it is the unit's one key now, of epoch `key_epoch`; `key_endorsement` is what is known of
-- the maker of the TPM that it is in ('': it is in none).
CREATE TABLE IF NOT EXISTS units (
    unit TEXT PRIMARY KEY, cell TEXT NOT NULL, keyid TEXT NOT NULL UNIQUE, public_key_pem TEXT NOT NULL,
    key_protection TEXT NOT NULL, key_epoch BIGINT NOT NULL DEFAULT 1 CHECK (key_epoch >= 1),
    key_endorsement TEXT NOT NULL DEFAULT '' CHECK (key_endorsement IN ('', 'verified EK', 'unverified EK')),
    device_class TEXT NOT NULL DEFAULT '', executor TEXT NOT NULL DEFAULT '',
    packages TEXT NOT NULL DEFAULT '[]', classes TEXT NOT NULL DEFAULT '[]',
    link TEXT NOT NULL DEFAULT '', boot TEXT NOT NULL DEFAULT '', conn BIGINT NOT NULL DEFAULT 0,
    seen_ms BIGINT NOT NULL, shorts BIGINT NOT NULL DEFAULT 0, faults BIGINT NOT NULL DEFAULT 0,
    benched_until_ms BIGINT NOT NULL DEFAULT 0, agreed BIGINT NOT NULL DEFAULT 0, disagreed BIGINT NOT NULL DEFAULT 0,
    odd_bits BIGINT NOT NULL DEFAULT 0,
    ledger_fault TEXT NOT NULL DEFAULT '' CHECK (ledger_fault IN ('', 'fork', 'rollback'))
);

-- The keys that units had before, each with the succession in which it handed over (to epoch + 1). What its sessions up
-- to `last_session` signed counts until `ends_ms`, and nothing else does. No key ever comes back.
CREATE TABLE IF NOT EXISTS former_keys (
    unit TEXT NOT NULL REFERENCES units, epoch BIGINT NOT NULL, keyid TEXT NOT NULL UNIQUE,
    public_key_pem TEXT NOT NULL, protection TEXT NOT NULL, endorsement TEXT NOT NULL DEFAULT '',
    last_session BIGINT NOT NULL, ends_ms BIGINT NOT NULL, succession BYTEA NOT NULL, PRIMARY KEY (unit, epoch)
);

-- `settled_epoch` is the newest epoch with a hand-in: it stands in the row that the compare-and-set locks. `failures`
-- counts leases that failed since the job last came on, in epoch `progress_epoch`; it is not granted before
-- `not_before_ms`. Of the lease: `granted_slices`, how many it is for; `done_slices`, how many of them renewals said to
-- be done, and `progress_ms`, when that last grew; `upload_bytes`, how much of its answers had been brought when it was
-- last held for the rest (-1: it was not); `missed_ms` and `missed_rid`, the request that first did not name it.
-- `sealed`: its input leaves the dispatcher sealed to the unit that has the lease, or not at all.
-- Of a copy: which job it does once more, the how-manieth it is, and for which class's units ('': anybody's).
CREATE TABLE IF NOT EXISTS jobs (
    job TEXT PRIMARY KEY, seq BIGINT NOT NULL, customer TEXT NOT NULL, package TEXT NOT NULL,
    package_sha256 TEXT NOT NULL, input_sha256 TEXT NOT NULL, input_bytes BIGINT NOT NULL, items BIGINT NOT NULL,
    slice_items BIGINT NOT NULL, price_micro_per_item BIGINT NOT NULL, currency TEXT NOT NULL, ttl_s BIGINT NOT NULL,
    workload_class TEXT NOT NULL DEFAULT '', executor TEXT NOT NULL DEFAULT '', device_class TEXT NOT NULL DEFAULT '',
    sealed BIGINT NOT NULL DEFAULT 0 CHECK (sealed IN (0, 1)),
    priority BIGINT NOT NULL DEFAULT 0, estimate_us_per_item BIGINT NOT NULL DEFAULT 0,
    replica_of TEXT REFERENCES jobs, replica BIGINT NOT NULL DEFAULT 0, equivalence_class TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'free' CHECK (state IN ('free', 'leased', 'done', 'dead', 'cancelled')),
    epoch BIGINT NOT NULL DEFAULT 0, settled_epoch BIGINT NOT NULL DEFAULT 0, holder TEXT, nonce TEXT,
    upload_token TEXT UNIQUE, granted_slices BIGINT NOT NULL DEFAULT 0, expected_ms BIGINT NOT NULL DEFAULT 0,
    granted_ms BIGINT, expires_ms BIGINT, done_slices BIGINT NOT NULL DEFAULT 0, progress_ms BIGINT NOT NULL DEFAULT 0,
    upload_bytes BIGINT NOT NULL DEFAULT -1, missed_ms BIGINT, missed_rid TEXT,
    failures BIGINT NOT NULL DEFAULT 0, progress_epoch BIGINT NOT NULL DEFAULT 0,
    not_before_ms BIGINT NOT NULL DEFAULT 0,
    cancel_why TEXT, cancel_ends_ms BIGINT NOT NULL DEFAULT 0, CHECK (settled_epoch <= epoch),
    UNIQUE (replica_of, replica)
);

-- The SHA-256 of signed payloads that carried a grant, by `number`: what a statement may name as its ticket.
CREATE TABLE IF NOT EXISTS tickets (
    job TEXT NOT NULL REFERENCES jobs, epoch BIGINT NOT NULL, sha256 TEXT NOT NULL, number BIGINT NOT NULL,
    PRIMARY KEY (job, epoch, sha256)
);

-- The session keys that a unit's key (`keyid`) has certified, by the session's number, with the certificate's envelope.
CREATE TABLE IF NOT EXISTS sessions (
    keyid TEXT NOT NULL, session BIGINT NOT NULL, session_keyid TEXT NOT NULL, certificate BYTEA NOT NULL,
    PRIMARY KEY (keyid, session)
);

-- One row for each lease that ended with a signed statement; the envelope is kept so that anybody can verify it, and
-- with `session` (NULL: none) the certificate of the key that signed it. `keyid` is the unit's own key either way.
-- `precision` is the one that it says it computed in ('': it does not say).
-- `pay` is what became of `paid_micro`; `checked` is what came of comparing its answers; `disputed`: nobody knows yet.
CREATE TABLE IF NOT EXISTS handins (
    job TEXT NOT NULL REFERENCES jobs, epoch BIGINT NOT NULL, unit TEXT NOT NULL REFERENCES units,
    verdict TEXT NOT NULL CHECK (verdict IN ('settled', 'bad')), reason TEXT NOT NULL DEFAULT '',
    paid_micro BIGINT NOT NULL DEFAULT 0, micro_wh BIGINT NOT NULL DEFAULT 0, at_ms BIGINT NOT NULL,
    statement_sha256 TEXT NOT NULL, keyid TEXT, counter BIGINT, envelope BYTEA,
    session BIGINT, equivalence_class TEXT NOT NULL DEFAULT '', precision TEXT NOT NULL DEFAULT '',
    items BIGINT NOT NULL DEFAULT 0,
    compute_ms BIGINT NOT NULL DEFAULT 0,
    pay TEXT NOT NULL DEFAULT 'held' CHECK (pay IN ('held', 'released', 'forfeited')),
    checked TEXT NOT NULL DEFAULT '' CHECK (checked IN ('', 'right', 'wrong')), disputed BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (job, epoch), UNIQUE (keyid, counter),
    FOREIGN KEY (keyid, session) REFERENCES sessions
);

-- A slice's answers: in `body`, or (NULL there) the object named by their digest.
CREATE TABLE IF NOT EXISTS results (
    job TEXT NOT NULL, slice BIGINT NOT NULL, epoch BIGINT NOT NULL, items BIGINT NOT NULL,
    failed_items BIGINT NOT NULL, paid_micro BIGINT NOT NULL, output_sha256 TEXT NOT NULL, body BYTEA,
    raw_sha256 TEXT NOT NULL DEFAULT '', PRIMARY KEY (job, slice), FOREIGN KEY (job, epoch) REFERENCES handins
);

-- Leases that came to nothing for a reason that may be the job's: why a job is dead is read here.
CREATE TABLE IF NOT EXISTS attempts (
    job TEXT NOT NULL REFERENCES jobs, epoch BIGINT NOT NULL, unit TEXT NOT NULL, why TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '', at_ms BIGINT NOT NULL, PRIMARY KEY (job, epoch)
);

-- What a unit is not offered until then: a package that it refused, a job that it failed or found too long.
CREATE TABLE IF NOT EXISTS refusals (
    unit TEXT NOT NULL REFERENCES units, what TEXT NOT NULL, until_ms BIGINT NOT NULL, PRIMARY KEY (unit, what)
);

-- How two results of a slice of `job` compare, that of `unit` and that of `copy_unit` ('': the operator's).
CREATE TABLE IF NOT EXISTS comparisons (
    job TEXT NOT NULL REFERENCES jobs, slice BIGINT NOT NULL, unit TEXT NOT NULL, copy_unit TEXT NOT NULL,
    same BIGINT NOT NULL CHECK (same IN (0, 1)), at_ms BIGINT NOT NULL, PRIMARY KEY (job, slice, unit, copy_unit)
);

-- What is known to be right: the answers to a slice that the operator knew beforehand, or computed himself.
CREATE TABLE IF NOT EXISTS known_answers (
    job TEXT NOT NULL REFERENCES jobs, slice BIGINT NOT NULL, answers BYTEA NOT NULL, PRIMARY KEY (job, slice)
);

-- Jobs that the operator put in among the others because he knows their answers, and after which job's pattern.
CREATE TABLE IF NOT EXISTS known_jobs (
    job TEXT PRIMARY KEY REFERENCES jobs, pattern TEXT NOT NULL UNIQUE REFERENCES jobs, made_ms BIGINT NOT NULL
);

-- What the operator's own worker is to compute: a job in dispute (`decide`), or one that is to be imitated (`known`).
-- One replica has it, until `claimed_until_ms`; `tries` failed, the last of them for `detail`.
CREATE TABLE IF NOT EXISTS referee_tasks (
    job TEXT NOT NULL REFERENCES jobs, task TEXT NOT NULL CHECK (task IN ('decide', 'known')),
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'given up')), at_ms BIGINT NOT NULL,
    claimed_by TEXT NOT NULL DEFAULT '', claimed_until_ms BIGINT NOT NULL DEFAULT 0,
    not_before_ms BIGINT NOT NULL DEFAULT 0, tries BIGINT NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, task)
);

-- Of which equivalence class a unit is, with each package; and how often two of a class gave the same bits, or only the
-- same values.
CREATE TABLE IF NOT EXISTS unit_classes (
    unit TEXT NOT NULL REFERENCES units, package_sha256 TEXT NOT NULL, equivalence_class TEXT NOT NULL,
    PRIMARY KEY (unit, package_sha256)
);
CREATE TABLE IF NOT EXISTS classes (
    equivalence_class TEXT PRIMARY KEY, exact BIGINT NOT NULL DEFAULT 0, inexact BIGINT NOT NULL DEFAULT 0
);

-- How long settled work took, by package and device class; and when somebody last tried what that says to be too long.
CREATE TABLE IF NOT EXISTS rates (
    package_sha256 TEXT NOT NULL, device_class TEXT NOT NULL, items BIGINT NOT NULL, took_ms BIGINT NOT NULL,
    tried_ms BIGINT NOT NULL DEFAULT 0, PRIMARY KEY (package_sha256, device_class)
);

-- The newest order of each kind to each unit, sent again whenever its link comes up; and the newest pace of each cell.
CREATE TABLE IF NOT EXISTS orders (
    unit TEXT NOT NULL REFERENCES units, kind TEXT NOT NULL CHECK (kind IN ('prices', 'demand')),
    issued_ms BIGINT NOT NULL, ends_ms BIGINT NOT NULL, body BYTEA NOT NULL, PRIMARY KEY (unit, kind)
);
CREATE TABLE IF NOT EXISTS paces (
    cell TEXT PRIMARY KEY, issued_ms BIGINT NOT NULL, body BYTEA NOT NULL
);

-- The newest checkpoint of each unit's ledger that was countersigned. `claim` is the largest that came without a proof
-- that it continues what was countersigned before it.
CREATE TABLE IF NOT EXISTS ledgers (
    unit TEXT PRIMARY KEY REFERENCES units, size BIGINT NOT NULL, root TEXT NOT NULL, envelope BYTEA NOT NULL,
    at_ms BIGINT NOT NULL, claim BYTEA
);

-- Units with settled hand-ins that no countersigned checkpoint covers: since when, and since when hand-ins are put off
-- for that (0: they are not).
CREATE TABLE IF NOT EXISTS unwitnessed (
    unit TEXT PRIMARY KEY REFERENCES units, since_ms BIGINT NOT NULL, put_off_ms BIGINT NOT NULL DEFAULT 0
);

-- What units' own signatures say against their ledgers, until an operator clears it, and ever after. `evidence` is a
-- JSON list of the envelopes that contradict each other.
CREATE TABLE IF NOT EXISTS ledger_faults (
    unit TEXT NOT NULL REFERENCES units, number BIGINT NOT NULL,
    fault TEXT NOT NULL CHECK (fault IN ('fork', 'rollback')), detail TEXT NOT NULL, evidence BYTEA NOT NULL,
    at_ms BIGINT NOT NULL, cleared_ms BIGINT, cleared_why TEXT NOT NULL DEFAULT '', PRIMARY KEY (unit, number)
);

-- To which key inputs are sealed for a unit: the newest that its own key vouched for, 32 bytes.
CREATE TABLE IF NOT EXISTS sealing_keys (
    unit TEXT PRIMARY KEY REFERENCES units, epoch BIGINT NOT NULL, public_key BYTEA NOT NULL
);

CREATE TABLE IF NOT EXISTS enrolment_codes (
    code_sha256 TEXT PRIMARY KEY, used_by TEXT REFERENCES units
);
"""

INDEXES = """
CREATE INDEX IF NOT EXISTS jobs_open ON jobs (state, priority DESC, seq);
CREATE INDEX IF NOT EXISTS jobs_by_holder ON jobs (holder, state);
CREATE INDEX IF NOT EXISTS jobs_by_expiry ON jobs (state, expires_ms);
CREATE INDEX IF NOT EXISTS jobs_by_age ON jobs (seq);
CREATE INDEX IF NOT EXISTS jobs_by_input ON jobs (input_sha256);
CREATE INDEX IF NOT EXISTS known_jobs_by_age ON known_jobs (made_ms);
CREATE INDEX IF NOT EXISTS handins_disputed ON handins (job) WHERE disputed = 1;
CREATE INDEX IF NOT EXISTS referee_tasks_open ON referee_tasks (task, at_ms) WHERE state = 'open';
CREATE INDEX IF NOT EXISTS handins_held ON handins (unit, at_ms) WHERE pay = 'held';
CREATE UNIQUE INDEX IF NOT EXISTS ledger_faults_standing ON ledger_faults (unit) WHERE cleared_ms IS NULL;
"""


def for_sqlite() -> str:
    """The same in SQLite's words: strict, so that a column takes its own type only."""
    return TABLES.replace("BIGINT", "INTEGER").replace("BYTEA", "BLOB").replace("\n);", "\n) STRICT;") + INDEXES


def for_postgres() -> str:
    """The same for PostgreSQL."""
    return TABLES + INDEXES
