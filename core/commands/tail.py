"""`tallywire tail`: a stream, as it happens."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import click
import msgspec
from msgspec import Raw, Struct

from core.commands.calls import reader_options, reader_target
from core.commands.endings import CommandFailed, ExitCode
from core.commands.follow import Feed, stream_query
from core.commands.tally import Changes, Closing, Contradiction, Expiring, Hour, Opening, Said, Tally
from core.commands.terminal import clock_time, count, counts, is_watched, note, say, say_json
from core.logs import printable
from core.models import Summary
from core.sse import ServerSentEvent

TYPE_WIDTH = 12
STRATEGY_WIDTH = 10
COUNT_WIDTH = 9
TIME_WIDTH = 12

HEAD = (
    f"{'time (UTC)':{TIME_WIDTH}}  {'strategy':>{STRATEGY_WIDTH}}  {'type':{TYPE_WIDTH}}"
    f"{'created':>{COUNT_WIDTH}}{'cancelled':>{COUNT_WIDTH + 2}}   {'all created':>11} {'all cancelled':>13}"
)

ERASE_LINE = "\r\x1b[2K"


class Line(Struct, frozen=True):
    """An event as `--json` writes it."""

    event: str
    id: str
    data: Raw


class Screen:
    """Rows for a person. On a terminal the line with the totals stays at the bottom."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._keeps_line = is_watched()
        self._has_line = False
        self._has_head = False

    def note(self, text: str) -> None:
        """A remark between the rows."""
        self._clear()
        note(text)
        self._draw()

    def warn(self, text: str) -> None:
        """One that must not be overlooked."""
        self._write(click.style(f"-- {printable(text)}", fg="yellow"))

    def opened(self, opening: Opening) -> None:
        """A stream is there."""
        if opening.reason:
            self.warn(f"reset ({opening.reason}): continuity cannot be shown; the totals are now those of the server")
        elif opening.resumed:
            self.note(f"Resumed at {opening.position}.")
        if not self._has_head:
            self._has_head = True
            self._write(click.style(HEAD, bold=True))

    def changed(self, changes: Changes) -> None:
        """One row for each strategy and order type."""
        for change in changes:
            totals = {each.order_type: each for each in change.totals.summaries}
            merged = f"   {change.batches} batches merged" if change.batches > 1 else ""
            for at, summary in enumerate(change.summaries):
                time, strategy = ("", "") if at else (clock_time(change.timestamp), str(change.strategy_id))
                mark = "" if at else click.style(merged, fg="yellow")
                self._write(_row(time, strategy, summary, totals[summary.order_type]) + mark)

    def hour(self, hour: Hour) -> None:
        """A notice: not added."""
        self._write(
            click.style(f"-- hour from {clock_time(hour.hour)}, strategy {hour.strategy_id}: ", dim=True)
            + click.style(counts(hour.summaries), dim=True)
        )

    def end(self) -> None:
        """The line with the totals, for good."""
        self._clear()
        if self._has_head:
            say(click.style(self._totals(), bold=True))

    def _write(self, text: str) -> None:
        self._clear()
        say(text)
        self._draw()

    def _clear(self) -> None:
        if self._has_line:
            say(ERASE_LINE, end="")
            self._has_line = False

    def _draw(self) -> None:
        if self._keeps_line and self._has_head:
            width = shutil.get_terminal_size().columns
            say(click.style(self._totals()[: width - 1], bold=True), end="")
            self._has_line = True

    def _totals(self) -> str:
        sums = [each for totals in self._tally.sums.values() for each in totals.summaries]
        created, cancelled = sum(each.created for each in sums), sum(each.cancelled for each in sums)
        strategies = "1 strategy" if len(self._tally.sums) == 1 else f"{len(self._tally.sums)} strategies"
        seen = "1 batch" if self._tally.batches == 1 else f"{self._tally.batches:,} batches"
        return f"total  {created:,} created  {cancelled:,} cancelled  in {strategies};  {seen} seen here"


def _row(time: str, strategy: str, summary: Summary, total: Summary) -> str:
    created = click.style(f"{count(summary.created):>{COUNT_WIDTH}}", fg="green" if summary.created else None)
    cancelled = click.style(f"{count(summary.cancelled):>{COUNT_WIDTH + 2}}", fg="red" if summary.cancelled else None)
    so_far = click.style(f"{total.created:>11,} {total.cancelled:>13,}", dim=True)
    order_type = f"{printable(summary.order_type):{TYPE_WIDTH}}"
    return f"{time:{TIME_WIDTH}}  {strategy:>{STRATEGY_WIDTH}}  {order_type}{created}{cancelled}   {so_far}"


class Lines:
    """Events for a program, one object a line; remarks go to standard error."""

    def write(self, event: ServerSentEvent) -> None:
        """As it came."""
        say_json(Line(event.event, event.last_event_id, Raw(event.data.encode())))


@click.command("tail")
@click.option("--user", type=click.IntRange(1), help="Whose stream; with a token the token says it.")
@click.option(
    "--strategy", "strategies", type=click.IntRange(1), multiple=True, help="May be repeated. Default: every one."
)
@click.option(
    "--from", "position", default="", metavar="POSITION", help="Where to resume. Default: what comes from now on."
)
@click.option("--count", "most", type=click.IntRange(1), help="End after so many updates.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one object a line.")
@reader_options
def tail(
    user: int | None,
    strategies: Sequence[int],
    position: str,
    most: int | None,
    as_json: bool,
    url: str | None,
    key_file: Path | None,
    ca_file: Path | None,
    public: bool,
    token_file: Path | None,
) -> None:
    """Watch the stream of a user as it happens.

    A row for each strategy and order type: what was created and cancelled now, and in all. It comes back by itself
    and resumes, so that nothing is missed; where that cannot be shown, a line says so. Every sum is checked against
    what the server states. Ctrl-C ends it.
    """
    target = reader_target(url, key_file, ca_file, public, token_file)
    if user is None and not target.secret:
        raise click.UsageError("whose stream? Name the --user.")
    tally = Tally(position)
    screen = Screen(tally)
    remark = note if as_json else screen.note

    def lost(reason: str, seconds: float) -> None:
        remark(f"{reason[0].upper()}{reason[1:]}; back in {seconds:.1f} s, from {tally.position or 'the head'}.")

    feed = Feed(
        target,
        "/stream" if public else "/internal/stream",
        stream_query(user, strategies),
        lambda: tally.position,
        lost,
    )
    followed = f"user {user}" if user is not None else "the token's user"
    which = ", ".join(map(str, strategies)) or "every strategy"
    remark(f"{target.url}: {followed}, {which}. Ctrl-C ends it.")
    try:
        _follow(feed, tally, screen, Lines() if as_json else None, most)
    except KeyboardInterrupt:
        # The way it usually ends: the totals take the place of the ^C.
        click.get_current_context().exit(ExitCode.INTERRUPTED)
    finally:
        if not as_json:
            screen.end()


def _follow(feed: Feed, tally: Tally, screen: Screen, lines: Lines | None, most: int | None) -> None:
    updates = 0
    for event, said in _believed(feed, tally, screen.warn if lines is None else note):
        if lines is not None:
            lines.write(event)
        _show(said, feed, None if lines is not None else screen)
        if isinstance(said, tuple):
            updates += 1
            if most is not None and updates >= most:
                return


def _believed(feed: Feed, tally: Tally, warn: Callable[[str], None]) -> Iterator[tuple[ServerSentEvent, Said]]:
    """Events that fit those before; after one that does not, those of a new stream."""
    while True:
        try:
            # Closed here and now: a Ctrl-C within what the collector closes would be lost.
            with closing(feed.events()) as events:
                for event in events:
                    yield event, _taken(tally, event)
        except Contradiction as error:
            warn(f"{error}: a new stream is opened")
            if error.loses_sums:
                tally.forget()
            feed.pause("it cannot be believed")


def _taken(tally: Tally, event: ServerSentEvent) -> Said:
    try:
        return tally.take(event)
    except msgspec.DecodeError as error:
        raise CommandFailed(f"{event.event} cannot be read: {error}.", ExitCode.REFUSED) from error


def _show(said: Said, feed: Feed, screen: Screen | None) -> None:
    match said:
        case Opening():
            feed.heartbeat_seconds = said.heartbeat_seconds
        case Closing(reconnect=False):
            raise CommandFailed(f"the server has ended the stream for good: {said.reason}.", ExitCode.REFUSED)
    if screen is None:
        return
    match said:
        case Opening():
            screen.opened(said)
        case tuple():
            screen.changed(said)
        case Hour():
            screen.hour(said)
        case Expiring():
            screen.note(f"The token ends in {said.seconds_left} s.")
        case Closing():
            screen.note(f"The server closes the stream: {said.reason}.")
