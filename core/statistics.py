"""Counts by hour: the answer of the statistics route, and the notice to streams at the turn of the hour."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from itertools import islice

from msgspec import Struct

from core.errors import Busy, InvalidQuery
from core.hub import Hub
from core.journal.base import HOUR_MS, HourCounts
from core.models import HourFacts, HourlyStatistics, OrderHourlySummary, Summary, iso_timestamp
from core.subscriber import StreamOptions, encode_framed_control
from core.totals import Totals

MOST_HOURS = 31 * 24
"""Hours that one answer spans: a month."""

MOST_ROWS = 10_000
"""Summaries of one answer: what was counted of one order type for one strategy in one hour."""

DEFAULT_HOURS = 24

SETTLE_MS = 1000
"""How long after the turn of the hour its notice goes: batches accepted just before it may still be on their way into
the journal."""

LOOK_SECONDS = 60
"""Longest sleep before the next look at the clock, which somebody may have set."""

USERS_A_QUERY = 1000

_LAST_HOUR = 253_402_300_800_000 // HOUR_MS - 1
"""9999-12-31T23:00Z: the last that can be written."""

_log = logging.getLogger("tallywire.stream")


class Span(Struct, frozen=True):
    """Hours since 1970, UTC, the last one not included."""

    first_hour: int
    end_hour: int


def span(from_ms: int | None, to_ms: int | None, now_ms: int) -> Span:
    """The whole hours that [from, to) touches; by default the last 24 up to now. Raises InvalidQuery."""
    end_hour = -(-to_ms // HOUR_MS) if to_ms is not None else now_ms // HOUR_MS + 1
    first_hour = from_ms // HOUR_MS if from_ms is not None else end_hour - DEFAULT_HOURS
    if first_hour < 0 or end_hour < first_hour:
        raise InvalidQuery("from", "must be after 1970 and not after to")
    if end_hour > _LAST_HOUR:
        raise InvalidQuery("to", f"must not be after {iso_timestamp(_LAST_HOUR * HOUR_MS)}")
    if end_hour - first_hour > MOST_HOURS:
        raise InvalidQuery("to", f"must be at most {MOST_HOURS // 24} days after from, both widened to whole hours")
    return Span(first_hour, end_hour)


async def hourly(hub: Hub, user_id: int, strategies: Collection[int] | None, hours: Span) -> HourlyStatistics:
    """Counts of one user by hour and strategy, exact up to the last commit; None: every strategy.

    Raises InvalidQuery when there are more than MOST_ROWS, and Busy.
    """
    found = await hub.journal.hours([user_id], strategies, hours.first_hour, hours.end_hour, MOST_ROWS + 1)
    if sum(len(each.summaries) for each in found) > MOST_ROWS:
        message = f"leaves more than {MOST_ROWS} summaries to state; ask for fewer hours or strategies"
        raise InvalidQuery("to", message)
    facts: list[HourFacts] = []
    for each in found:
        facts.append(HourFacts(iso_timestamp(each.hour * HOUR_MS), each.strategy_id, each.summaries))
        await hub.slices.breathe()
    return HourlyStatistics(
        user_id, iso_timestamp(hours.first_hour * HOUR_MS), iso_timestamp(hours.end_hour * HOUR_MS), tuple(facts)
    )


class HourlyNotices:
    """Tells every stream, at the turn of the hour, what was counted in it for the keys that it follows.

    A stream that is not reading then misses the notice: the statistics route is the truth. An hour that ends again,
    since the clock was set back, is stated again.
    """

    def __init__(self, hub: Hub, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._hub = hub
        self._sleep = sleep

    async def run(self) -> None:
        """For ever; to be cancelled."""
        hour = self._hour()
        while True:
            left_ms = (hour + 1) * HOUR_MS + SETTLE_MS - self._hub.now_ms()
            await self._sleep(min(max(left_ms / 1000, 0.01), LOOK_SECONDS))
            now = self._hour()
            if now > hour:
                try:
                    await self.announce(now - 1)
                except Busy:
                    _log.warning("Hourly summaries not sent", extra={"hour": iso_timestamp((now - 1) * HOUR_MS)})
                except Exception:
                    # The next hour has its own.
                    _log.exception("Hourly summaries failed")
            hour = now

    async def announce(self, hour: int) -> None:
        """Send the notices of one hour. Raises Busy when the journal cannot be read."""
        users = iter(dict.fromkeys(subscriber.user_id for subscriber in self._hub.registry.subscribers))
        while portion := list(islice(users, USERS_A_QUERY)):
            for counted in await self._hub.journal.hours(portion, None, hour, hour + 1):
                await self._tell(counted)

    async def _tell(self, counted: HourCounts) -> None:
        user = self._hub.registry.user(counted.user_id)
        key = user.keys.get(counted.strategy_id) if user else None
        if user is None or key is None:
            return
        summaries = _in_order_of(key.head.totals, counted)
        notice = OrderHourlySummary(counted.strategy_id, iso_timestamp(counted.hour * HOUR_MS), summaries)
        encoded: dict[StreamOptions, bytes] = {}
        for listener in user.listeners(key):
            options = listener.options
            if options not in encoded:
                encoded[options] = encode_framed_control(notice, options)
            try:
                listener.send(encoded[options])
            except Exception:
                # That stream has ended; the others are told.
                _log.exception("Hourly summary failed")
            await self._hub.slices.breathe()

    def _hour(self) -> int:
        return (self._hub.now_ms() - SETTLE_MS) // HOUR_MS


def _in_order_of(totals: Totals, counted: HourCounts) -> tuple[Summary, ...]:
    """As every frame lists order types: in the order in which the key first saw them."""
    place = {summary.order_type: index for index, summary in enumerate(totals.summaries)}
    return tuple(sorted(counted.summaries, key=lambda summary: place.get(summary.order_type, len(place))))
