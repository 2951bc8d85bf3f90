"""`tallywire statistics`: what was counted, by hour."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from core.commands.calls import Query, get, reader_options, reader_target
from core.commands.terminal import columns, count, say, say_json
from core.logs import printable
from core.models import HourlyStatistics

HEAD = ("hour (UTC)", "strategy", "type", "created", "cancelled")
TO_THE_RIGHT = (False, True, False, True, True)


@click.command("statistics")
@click.option("--user", type=click.IntRange(1), help="Whose; with a token the token says it.")
@click.option("--strategy", type=click.IntRange(1), help="Of one strategy. Default: every one.")
@click.option("--hours", type=click.IntRange(1, 31 * 24), help="The last so many. Default: 24.")
@click.option("--from", "since", metavar="TIME", help="From this time on, as 2026-01-31T14:00Z.")
@click.option("--to", "until", metavar="TIME", help="Up to this time, not included.")
@click.option("--json", "as_json", is_flag=True, help="Print each hour and strategy as one object a line.")
@reader_options
def statistics(
    user: int | None,
    strategy: int | None,
    hours: int | None,
    since: str | None,
    until: str | None,
    as_json: bool,
    url: str | None,
    key_file: Path | None,
    ca_file: Path | None,
    public: bool,
    token_file: Path | None,
) -> None:
    """What was counted for a user, by hour, strategy and order type: every hour in which something was."""
    target = reader_target(url, key_file, ca_file, public, token_file)
    if user is None and not target.secret:
        raise click.UsageError("whose? Name the --user.")
    query = [(name, value) for name, value in _asked(user, strategy, hours, since, until) if value]
    found = get(target, "/statistics/hourly" if public else "/internal/statistics/hourly", query, HourlyStatistics)
    if as_json:
        for hour in found.hours:
            say_json(hour)
        return
    say(f"User {found.user_id}, from {_minute(found.from_)} to {_minute(found.to)}, UTC")
    if not found.hours:
        say("Nothing was counted.")
        return
    for line in _table(found):
        say(line)


def _asked(user: int | None, strategy: int | None, hours: int | None, since: str | None, until: str | None) -> Query:
    if hours is not None:
        if since or until:
            raise click.UsageError("--hours is up to now: leave --from and --to out, or it.")
        since = (datetime.now(UTC) - timedelta(hours=hours - 1)).isoformat(timespec="seconds")
    return (
        ("user_id", str(user or "")),
        ("strategy_id", str(strategy or "")),
        ("from", since or ""),
        ("to", until or ""),
    )


def _table(found: HourlyStatistics) -> Sequence[str]:
    rows = [HEAD]
    before: tuple[str, int] | None = None
    for hour in found.hours:
        for summary in hour.summaries:
            is_same_hour = before is not None and before[0] == hour.hour
            is_same = before == (hour.hour, hour.strategy_id)
            rows.append(
                (
                    "" if is_same_hour else _minute(hour.hour),
                    "" if is_same else str(hour.strategy_id),
                    printable(summary.order_type),
                    count(summary.created),
                    count(summary.cancelled),
                )
            )
            before = hour.hour, hour.strategy_id
    every = [summary for hour in found.hours for summary in hour.summaries]
    created, cancelled = sum(each.created for each in every), sum(each.cancelled for each in every)
    rows.append(("total", "", "", count(created), count(cancelled)))
    head, *middle, total = columns(rows, TO_THE_RIGHT)
    return [click.style(head, bold=True), *middle, click.style(total, bold=True)]


def _minute(timestamp: str) -> str:
    return printable(timestamp)[:16].replace("T", " ")
