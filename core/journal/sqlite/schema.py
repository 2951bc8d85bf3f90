"""What stands in the file, as SQL. Text only.

Everything goes in and comes out as JSON in one parameter and one value, so that a whole transaction, and a whole group
of reads, is one step of SQLite: the interpreter's lock is given back for all of it, and taken again once. A step for
each row would wait for the loop each time; on a loop that is busy that was 30 ms a row.
"""

from core.journal.base import HOUR_MS

APPLICATION_ID = 0x54414C59
"""`TALY`, in the file's header: says whose database it is."""

MIGRATIONS = (
    """
    CREATE TABLE journal (
        only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
        epoch TEXT NOT NULL,
        inode INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        durability TEXT NOT NULL,
        is_clean INTEGER NOT NULL,
        trimmed_to INTEGER NOT NULL DEFAULT 0,
        rolled_up_to INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE rows (
        seq INTEGER PRIMARY KEY,
        user_id INTEGER NOT NULL,
        strategy_id INTEGER NOT NULL,
        n INTEGER NOT NULL,
        number INTEGER NOT NULL,
        accepted_ms INTEGER NOT NULL,
        aged_ms INTEGER NOT NULL,
        summaries TEXT NOT NULL,
        totals TEXT NOT NULL
    );
    CREATE UNIQUE INDEX rows_by_key ON rows (user_id, strategy_id, n);
    CREATE TABLE idempotency (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        caller TEXT NOT NULL,
        user_id INTEGER NOT NULL,
        strategy_id INTEGER NOT NULL,
        n INTEGER NOT NULL,
        accepted_ms INTEGER NOT NULL,
        aged_ms INTEGER NOT NULL,
        ignored INTEGER NOT NULL,
        summaries TEXT NOT NULL,
        UNIQUE (key, caller)
    );
    CREATE TABLE hours (
        hour INTEGER NOT NULL,
        user_id INTEGER NOT NULL,
        strategy_id INTEGER NOT NULL,
        order_type TEXT NOT NULL,
        created INTEGER NOT NULL,
        cancelled INTEGER NOT NULL,
        PRIMARY KEY (hour, user_id, strategy_id, order_type)
    ) WITHOUT ROWID;
    CREATE TABLE hour_ages (hour INTEGER PRIMARY KEY, aged_ms INTEGER NOT NULL);
    CREATE INDEX hour_ages_by_age ON hour_ages (aged_ms);
    """,
)
"""Each brings the file from the schema version of its index to the next one. Never changed once released.

`rows`: accepted batches in order of commit (`seq`, dense). `summaries` are the batch's own counts, `totals` the key's
after it, both [[order type, created, cancelled], ...]. `aged_ms` is the journal's own clock. A row of strategy 0
marks a deletion: the user's rows below its n are gone. `trimmed_to`, `rolled_up_to`: the last seq that trimming has
looked at, and that `hours` contains. `idempotency.id` grows with age.
"""

INTAKE = """
CREATE TEMP VIEW accepted AS SELECT
    0 AS seq, 0 AS user_id, 0 AS strategy_id, 0 AS n, 0 AS number, 0 AS accepted_ms, 0 AS aged_ms,
    '' AS summaries, '' AS totals, 0 AS ignored, '' AS key, '' AS caller;
CREATE TEMP TRIGGER accept INSTEAD OF INSERT ON accepted BEGIN
    INSERT INTO rows VALUES (
        NEW.seq, NEW.user_id, NEW.strategy_id, NEW.n, NEW.number, NEW.accepted_ms, NEW.aged_ms, NEW.summaries,
        NEW.totals
    );
    INSERT OR REPLACE INTO idempotency SELECT
        NULL, NEW.key, NEW.caller, NEW.user_id, NEW.strategy_id, NEW.n, NEW.accepted_ms, NEW.aged_ms, NEW.ignored,
        NEW.summaries
    WHERE NEW.key IS NOT NULL;
END;
"""
"""Lets one statement write a batch's row and its idempotency record."""


def _columns(count: int) -> str:
    return ", ".join(f"json_extract(value, '$[{index}]')" for index in range(count))


ACCEPT = f"INSERT INTO accepted SELECT {_columns(12)} FROM json_each(?)"
"""A transaction: [[seq, user, strategy, n, number, accepted_ms, aged_ms, summaries, totals, ignored, key, caller], ...]
in the order of `accepted`."""

HEADS = """
WITH RECURSIVE keys (user_id, strategy_id) AS (
    SELECT value, (SELECT min(strategy_id) FROM rows WHERE user_id = value) FROM json_each(?)
    UNION ALL
    SELECT user_id, (
        SELECT min(strategy_id) FROM rows WHERE rows.user_id = keys.user_id AND rows.strategy_id > keys.strategy_id
    ) FROM keys WHERE strategy_id IS NOT NULL
)
SELECT json_group_array(json_array(user_id, strategy_id, n, number, accepted_ms, json(totals)))
FROM rows WHERE seq IN (
    SELECT (
        SELECT seq FROM rows WHERE rows.user_id = keys.user_id AND rows.strategy_id = keys.strategy_id
        ORDER BY n DESC LIMIT 1
    ) FROM keys WHERE strategy_id IS NOT NULL
)
"""
"""[user, ...] -> the newest row of each of their keys, deletions included: two point reads a key."""

REMEMBERED = """
SELECT json_group_array(json_array(
    key, caller, user_id, strategy_id, n, accepted_ms, aged_ms, ignored, json(summaries)
))
FROM (
    SELECT json_extract(value, '$[0]') AS asked_key, json_extract(value, '$[1]') AS asked_caller FROM json_each(?)
)
CROSS JOIN idempotency ON key = asked_key AND caller = asked_caller
"""
"""[[key, caller], ...] -> the records of those that have one."""

REMEMBERED_BY_ALL = """
SELECT json_group_array(json_array(
    key, caller, user_id, strategy_id, n, accepted_ms, aged_ms, ignored, json(summaries)
))
FROM idempotency WHERE key = :key AND aged_ms >= :oldest_ms
"""

ROWS_AT = """
SELECT json_group_array(json_array(
    (SELECT max(n) FROM rows WHERE user_id = asked.user_id AND strategy_id = 0),
    (SELECT number FROM rows WHERE user_id = asked.user_id AND strategy_id = asked.strategy_id ORDER BY n LIMIT 1),
    json((
        SELECT json_array(user_id, strategy_id, n, number, accepted_ms, json(totals)) FROM rows
        WHERE user_id = asked.user_id AND strategy_id = asked.strategy_id AND n <= asked.n ORDER BY n DESC LIMIT 1
    ))
))
FROM (
    SELECT json_extract(value, '$[0]') AS user_id, json_extract(value, '$[1]') AS strategy_id,
        json_extract(value, '$[2]') AS n
    FROM json_each(?) ORDER BY key
) AS asked
"""
"""[[user, strategy, n], ...] -> for each of them, in order, what judges the position: the place of the user's deletion,
the number of the key's oldest row, and its newest row at or below n; each null when there is none."""

KEY_RECORD = """
SELECT json_array(
    json((
        SELECT json_array(user_id, strategy_id, n, number, accepted_ms, json(totals)) FROM rows
        WHERE user_id = :user_id AND strategy_id = :strategy_id ORDER BY n DESC LIMIT 1
    )),
    json((
        SELECT json_array(user_id, strategy_id, n, number, accepted_ms, json(totals)) FROM rows
        WHERE user_id = :user_id AND strategy_id = :strategy_id ORDER BY n LIMIT 1
    ))
)
"""

BATCHES = """
SELECT json_group_array(json_array(n, accepted_ms, json(summaries))) FROM (
    SELECT n, accepted_ms, summaries FROM rows
    WHERE user_id = :user_id AND strategy_id = :strategy_id AND n > :after_n
        AND accepted_ms >= :from_ms AND accepted_ms < :to_ms
    ORDER BY n LIMIT :limit
)
"""

HOURS = f"""
WITH RECURSIVE
    asked (user_id) AS (SELECT value FROM json_each(:users)),
    span (hour) AS (
        SELECT :first_hour WHERE :first_hour < :end_hour
        UNION ALL SELECT hour + 1 FROM span WHERE hour + 1 < :end_hour
    ),
    counted (hour, user_id, strategy_id, order_type, created, cancelled) AS (
        SELECT hours.hour, hours.user_id, strategy_id, order_type, created, cancelled
        FROM span CROSS JOIN asked CROSS JOIN hours ON hours.hour = span.hour AND hours.user_id = asked.user_id
        UNION ALL
        SELECT accepted_ms / {HOUR_MS}, user_id, strategy_id,
            json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM rows CROSS JOIN json_each(summaries)
        WHERE seq > (SELECT rolled_up_to FROM journal) AND +user_id IN (SELECT user_id FROM asked)
            AND accepted_ms / {HOUR_MS} >= :first_hour AND accepted_ms / {HOUR_MS} < :end_hour
    )
SELECT json_group_array(json_array(hour, user_id, strategy_id, order_type, created, cancelled)) FROM (
    SELECT hour, user_id, strategy_id, order_type, sum(created) AS created, sum(cancelled) AS cancelled
    FROM counted WHERE :strategy_id IS NULL OR strategy_id = :strategy_id GROUP BY 1, 2, 3, 4
)
"""
"""What is rolled up, and the rows that are not yet: one statement sees one state of both.

`+user_id`: by seq the latter are few; by the index of keys every row that the users ever had would be looked at.
"""

ROLL_UP = (
    f"""
    INSERT INTO hours
    SELECT accepted_ms / {HOUR_MS}, user_id, strategy_id, json_extract(value, '$[0]'),
        sum(json_extract(value, '$[1]')), sum(json_extract(value, '$[2]'))
    FROM rows CROSS JOIN json_each(summaries)
    WHERE seq > (SELECT rolled_up_to FROM journal) AND seq <= :to_seq
    GROUP BY 1, 2, 3, 4
    ON CONFLICT DO UPDATE SET created = created + excluded.created, cancelled = cancelled + excluded.cancelled
    """,
    f"""
    INSERT OR REPLACE INTO hour_ages SELECT accepted_ms / {HOUR_MS}, max(aged_ms) FROM rows
    WHERE seq > (SELECT rolled_up_to FROM journal) AND seq <= :to_seq AND strategy_id > 0 GROUP BY 1
    """,
    "UPDATE journal SET rolled_up_to = :to_seq",
)

OLDEST_AGES = """
SELECT
    (SELECT aged_ms FROM rows WHERE seq > :trimmed_to ORDER BY seq LIMIT 1),
    (SELECT aged_ms FROM idempotency ORDER BY id LIMIT 1),
    (SELECT min(aged_ms) FROM hour_ages)
"""

NEXT_ROWS = """
SELECT max(seq), max(CASE WHEN aged_ms < :oldest_ms THEN seq END)
FROM (SELECT seq, aged_ms FROM rows WHERE seq > :trimmed_to ORDER BY seq LIMIT :step)
"""
"""The rows that trimming would look at next: the last of them, and the last that is too old."""

TRIM = (
    """
    DELETE FROM rows WHERE seq IN (
        SELECT (
            SELECT seq FROM rows AS older
            WHERE older.user_id = due.user_id AND older.strategy_id = due.strategy_id AND older.n < due.n
            ORDER BY older.n DESC LIMIT 1
        )
        FROM rows AS due WHERE due.seq > (SELECT trimmed_to FROM journal) AND due.seq <= :to_seq
    )
    """,
    "UPDATE journal SET trimmed_to = :to_seq",
)
"""A row goes when the *next* one of its key is due: until then it says what the key's totals were at positions that are
young enough to be resumed from. So the newest row of a key always stays."""

PURGE = """
DELETE FROM idempotency WHERE id IN (SELECT id FROM idempotency ORDER BY id LIMIT :step) AND aged_ms < :oldest_ms
"""

PURGE_HOURS = (
    """
    DELETE FROM hours WHERE (hour, user_id, strategy_id, order_type) IN (
        SELECT hour, user_id, strategy_id, order_type FROM hours
        WHERE hour = (SELECT hour FROM hour_ages WHERE aged_ms < :oldest_ms ORDER BY aged_ms LIMIT 1) LIMIT :step
    )
    """,
    """
    DELETE FROM hour_ages WHERE aged_ms < :oldest_ms AND NOT EXISTS (
        SELECT 1 FROM hours WHERE hours.hour = hour_ages.hour
    )
    """,
)

DELETE_USER = (
    "DELETE FROM idempotency WHERE user_id = :user_id",
    "DELETE FROM hours WHERE hour IN (SELECT hour FROM hour_ages) AND user_id = :user_id",
    "DELETE FROM rows WHERE user_id = :user_id",
    "INSERT INTO rows VALUES (:seq, :user_id, 0, :n, 0, :accepted_ms, :aged_ms, '[]', '[]')",
)

SIZES = "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"

MARKS = "SELECT coalesce((SELECT max(seq) FROM rows), 0), trimmed_to, rolled_up_to FROM journal"

LAST_AGE = """
SELECT max(
    coalesce((SELECT aged_ms FROM rows ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT aged_ms FROM idempotency ORDER BY id DESC LIMIT 1), 0),
    coalesce((SELECT max(aged_ms) FROM hour_ages), 0)
)
"""
