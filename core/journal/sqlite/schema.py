"""What stands in the file, as SQL. Text only.

A whole transaction, and a whole group of reads, is one step of SQLite, or a few: the interpreter's lock is given back
for all of it, and taken again once. A step for each row would wait for the loop each time; on a loop that is busy that
was 30 ms a row. So rows go in as the parameters of one statement; what is asked for goes in, and what is answered comes
out, as JSON in one parameter and one value.
"""

from functools import cache

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
    """
    CREATE TABLE recent (
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
    CREATE UNIQUE INDEX recent_by_key ON recent (user_id, strategy_id, n);
    INSERT INTO recent SELECT * FROM rows WHERE seq > (SELECT rolled_up_to FROM journal);
    DELETE FROM rows WHERE seq > (SELECT rolled_up_to FROM journal);
    """,
    """
    CREATE TABLE revocations (
        user_id INTEGER NOT NULL,
        strategy_id INTEGER NOT NULL,
        revoked_ms INTEGER NOT NULL,
        until_ms INTEGER NOT NULL,
        PRIMARY KEY (user_id, strategy_id)
    ) WITHOUT ROWID;
    """,
)
"""Each brings the file from the schema version of its index to the next one. Never changed once released.

`rows`, and behind them `recent`: accepted batches in order of commit (`seq`, dense). `summaries` are the batch's own
counts, `totals` the key's after it, both [[order type, created, cancelled], ...]. `aged_ms` is the journal's own clock.
A row of strategy 0 marks a deletion: the user's rows below its n are gone. `trimmed_to`, `rolled_up_to`: the last seq
that trimming has looked at, and that `hours` contains; `recent` holds what is younger than the latter. `idempotency.id`
grows with age. `revocations`: see `RevocationRecord`; times by the wall clock, as those of tokens are.

Why two tables: in an index of many rows each new one changes a page of its own, which a commit has to write, to sync
and to work off again. The index of `recent` is a few pages, however many rows come in; a thousand of them then go on
to the other one together.
"""

MOST_AT_ONCE = 1024
"""Rows of one statement at most: 8 parameters each, of 32,766 that SQLite takes."""


@cache
def accept(count: int) -> str:
    """Write a transaction's rows; values: the seq of the first, aged_ms, then for each row user, strategy, n, number,
    accepted_ms, summaries and totals, or seven times 0 to leave the place empty."""
    columns = "column2, column3, column4, column5, column6, ?, column7, column8"
    return f"INSERT INTO recent SELECT ? + column1, {columns} FROM ({_places(count, 7)}) WHERE column2 <> 0"


@cache
def remember(count: int) -> str:
    """Write idempotency records; values: aged_ms, then for each key, caller, user, strategy, n, accepted_ms, ignored
    and summaries, or eight times 0 to leave the place empty."""
    columns = "column2, column3, column4, column5, column6, column7, ?, column8, column9"
    return f"INSERT OR REPLACE INTO idempotency SELECT NULL, {columns} FROM ({_places(count, 8)}) WHERE column4 <> 0"


def _places(count: int, width: int) -> str:
    parameters = ", ?" * width
    return "VALUES " + ", ".join(f"({index}{parameters})" for index in range(count))


HEADS = """
WITH RECURSIVE
    asked (user_id) AS (SELECT value FROM json_each(?)),
    keys (user_id, strategy_id) AS (
        SELECT user_id, (SELECT min(strategy_id) FROM rows WHERE rows.user_id = asked.user_id) FROM asked
        UNION ALL
        SELECT user_id, (
            SELECT min(strategy_id) FROM rows WHERE rows.user_id = keys.user_id AND rows.strategy_id > keys.strategy_id
        ) FROM keys WHERE strategy_id IS NOT NULL
    )
SELECT json_group_array(json_array(user_id, strategy_id, n, number, accepted_ms, json(totals))) FROM (
    SELECT user_id, strategy_id, n, number, accepted_ms, totals FROM rows WHERE seq IN (
        SELECT (
            SELECT seq FROM rows WHERE rows.user_id = keys.user_id AND rows.strategy_id = keys.strategy_id
            ORDER BY n DESC LIMIT 1
        ) FROM keys WHERE strategy_id IS NOT NULL
    )
    UNION ALL
    SELECT user_id, strategy_id, n, number, accepted_ms, totals FROM recent WHERE seq IN (
        SELECT max(seq) FROM recent WHERE user_id IN (SELECT user_id FROM asked) GROUP BY user_id, strategy_id
    )
)
"""
"""[user, ...] -> the newest row of each of their keys, deletions included: two point reads a key in `rows`. A key that
is in both tables comes twice."""

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

_ROW = "json_array(user_id, strategy_id, n, number, accepted_ms, json(totals))"

_ASKED_KEY = "user_id = asked.user_id AND strategy_id = asked.strategy_id"

ROWS_AT = f"""
SELECT json_group_array(json_array(
    coalesce(
        (SELECT max(n) FROM recent WHERE user_id = asked.user_id AND strategy_id = 0),
        (SELECT max(n) FROM rows WHERE user_id = asked.user_id AND strategy_id = 0)
    ),
    coalesce(
        (SELECT number FROM rows WHERE {_ASKED_KEY} ORDER BY n LIMIT 1),
        (SELECT number FROM recent WHERE {_ASKED_KEY} ORDER BY n LIMIT 1)
    ),
    json(coalesce(
        (SELECT {_ROW} FROM recent WHERE {_ASKED_KEY} AND n <= asked.n ORDER BY n DESC LIMIT 1),
        (SELECT {_ROW} FROM rows WHERE {_ASKED_KEY} AND n <= asked.n ORDER BY n DESC LIMIT 1)
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

_THE_KEY = "user_id = :user_id AND strategy_id = :strategy_id"


def _key_record(the_key: str) -> str:
    """The newest and the oldest row of a key, as JSON."""
    return f"""json_array(
    json(coalesce(
        (SELECT {_ROW} FROM recent WHERE {the_key} ORDER BY n DESC LIMIT 1),
        (SELECT {_ROW} FROM rows WHERE {the_key} ORDER BY n DESC LIMIT 1)
    )),
    json(coalesce(
        (SELECT {_ROW} FROM rows WHERE {the_key} ORDER BY n LIMIT 1),
        (SELECT {_ROW} FROM recent WHERE {the_key} ORDER BY n LIMIT 1)
    ))
)"""


KEY_RECORD = f"SELECT {_key_record(_THE_KEY)}"


def _next_strategy(after: str) -> str:
    next_in = "SELECT min(strategy_id) AS strategy_id FROM {} WHERE user_id = :user_id AND strategy_id > {}"
    both = " UNION ALL ".join(next_in.format(table, after) for table in ("rows", "recent"))
    return f"SELECT min(strategy_id) FROM ({both})"


KEY_RECORDS = f"""
WITH RECURSIVE keys (strategy_id) AS (
    {_next_strategy(":after_strategy")}
    UNION ALL
    SELECT ({_next_strategy("keys.strategy_id")}) FROM keys WHERE strategy_id IS NOT NULL LIMIT :limit
)
SELECT json_group_array({_key_record("user_id = :user_id AND strategy_id = asked.strategy_id")})
FROM (SELECT strategy_id FROM keys WHERE strategy_id IS NOT NULL ORDER BY strategy_id) AS asked
"""
"""Point reads only, some for each key: however many batches there are, they are not walked through. Deletions stand
under strategy 0, which nothing is behind."""

_ASKED_BATCH = f"{_THE_KEY} AND n > :after_n AND accepted_ms >= :from_ms AND accepted_ms < :to_ms"

BATCHES = f"""
SELECT json_group_array(json_array(n, accepted_ms, json(summaries))) FROM (
    SELECT n, accepted_ms, summaries FROM rows WHERE {_ASKED_BATCH}
    UNION ALL
    SELECT n, accepted_ms, summaries FROM recent WHERE {_ASKED_BATCH}
    ORDER BY n LIMIT :limit
)
"""

_ASKED_STRATEGY = "(:strategies IS NULL OR strategy_id IN (SELECT value FROM json_each(:strategies)))"

HOURS = f"""
WITH RECURSIVE
    asked (user_id) AS (SELECT value FROM json_each(:users)),
    span (hour) AS (
        SELECT :first_hour WHERE :first_hour < :end_hour
        UNION ALL SELECT hour + 1 FROM span WHERE hour + 1 < :end_hour
    ),
    counted (hour, user_id, strategy_id, order_type, created, cancelled) AS (
        SELECT * FROM (
            SELECT hours.hour, hours.user_id, strategy_id, order_type, created, cancelled
            FROM span CROSS JOIN asked CROSS JOIN hours ON hours.hour = span.hour AND hours.user_id = asked.user_id
                AND strategy_id BETWEEN :least AND :most
            WHERE {_ASKED_STRATEGY} LIMIT :limit
        )
        UNION ALL
        SELECT accepted_ms / {HOUR_MS}, user_id, strategy_id,
            json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM recent CROSS JOIN json_each(summaries)
        WHERE user_id IN (SELECT user_id FROM asked) AND {_ASKED_STRATEGY}
            AND accepted_ms / {HOUR_MS} >= :first_hour AND accepted_ms / {HOUR_MS} < :end_hour
    )
SELECT json_group_array(json_array(hour, user_id, strategy_id, order_type, created, cancelled)) FROM (
    SELECT hour, user_id, strategy_id, order_type, sum(created) AS created, sum(cancelled) AS cancelled
    FROM counted GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT :limit
)
"""
"""What is rolled up, and the rows that are not yet: one statement sees one state of both. The users come in order, so
that what the first limit leaves out stands behind what the second one lets through."""

_USUAL_TYPES = 4
"""So many order types of a batch are taken out by their place, which takes a third of the time that looking at each
element of a list does."""


def _summary(json: str, path: str) -> str:
    counts = ", ".join(f"json_extract({json}, '{path}[{index}]')" for index in range(3))
    return f"SELECT accepted_ms / {HOUR_MS}, user_id, strategy_id, {counts}"


_COUNTED = " UNION ALL ".join(
    (
        *(
            f"{_summary('summaries', f'$[{place}]')} FROM recent WHERE json_array_length(summaries) > {place}"
            for place in range(_USUAL_TYPES)
        ),
        f"{_summary('value', '$')} FROM recent CROSS JOIN json_each(summaries) "
        f"WHERE json_array_length(summaries) > {_USUAL_TYPES} AND key >= {_USUAL_TYPES}",
    )
)

ROLL_UP = (
    f"""
    INSERT INTO hours {_COUNTED}
    ON CONFLICT DO UPDATE SET created = created + excluded.created, cancelled = cancelled + excluded.cancelled
    """,
    f"""
    INSERT OR REPLACE INTO hour_ages
    SELECT accepted_ms / {HOUR_MS}, max(aged_ms) FROM recent WHERE strategy_id > 0 GROUP BY 1
    """,
    "INSERT INTO rows SELECT * FROM recent ORDER BY seq",
    "UPDATE journal SET rolled_up_to = :to_seq",
    "DELETE FROM recent",
)
"""All that is recent, at once: emptying a table is one act, taking single rows from it costs as much as putting them
in."""

OLDEST_AGES = """
SELECT
    coalesce(
        (SELECT aged_ms FROM rows WHERE seq > :trimmed_to ORDER BY seq LIMIT 1),
        (SELECT aged_ms FROM recent ORDER BY seq LIMIT 1)
    ),
    (SELECT aged_ms FROM idempotency ORDER BY id LIMIT 1),
    (SELECT min(aged_ms) FROM hour_ages)
"""

NEXT_ROWS = """
SELECT max(seq), max(CASE WHEN aged_ms < :oldest_ms THEN seq END) FROM (
    SELECT seq, aged_ms FROM rows WHERE seq > :trimmed_to
    UNION ALL
    SELECT seq, aged_ms FROM recent
    ORDER BY seq LIMIT :step
)
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
    "DELETE FROM recent WHERE user_id = :user_id",
    "INSERT INTO recent VALUES (:seq, :user_id, 0, :n, 0, :accepted_ms, :aged_ms, '[]', '[]')",
)

REVOKE = """
INSERT INTO revocations VALUES (:user_id, :strategy_id, :revoked_ms, :until_ms)
ON CONFLICT DO UPDATE SET revoked_ms = max(revoked_ms, excluded.revoked_ms), until_ms = max(until_ms, excluded.until_ms)
"""

REVOCATIONS = "SELECT user_id, strategy_id, revoked_ms, until_ms FROM revocations"

FORGET_REVOCATIONS = "DELETE FROM revocations WHERE until_ms < :now_ms"

SIZES = "SELECT page_count, freelist_count, page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size"

LAST_SEQ = "SELECT coalesce((SELECT max(seq) FROM recent), (SELECT max(seq) FROM rows), 0)"

MARKS = f"SELECT ({LAST_SEQ}), trimmed_to, rolled_up_to FROM journal"

COUNT_USER = """
SELECT (SELECT count(*) FROM rows WHERE user_id = :user_id AND strategy_id > 0)
    + (SELECT count(*) FROM recent WHERE user_id = :user_id AND strategy_id > 0)
"""

LAST_AGE = """
SELECT max(
    coalesce((SELECT aged_ms FROM recent ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT aged_ms FROM rows ORDER BY seq DESC LIMIT 1), 0),
    coalesce((SELECT aged_ms FROM idempotency ORDER BY id DESC LIMIT 1), 0),
    coalesce((SELECT max(aged_ms) FROM hour_ages), 0)
)
"""
