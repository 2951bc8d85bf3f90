"""Results to summaries: one pass over the results, memory for the order types only. Pure."""

import re
from collections.abc import Iterable
from functools import lru_cache

from core.errors import FieldProblem
from core.models import BatchResult, Summary

_ORDER_TYPE = re.compile(r"[A-Z][A-Z0-9_]{0,31}")
_ORDER_TYPE_MESSAGE = "expected an order type of the form [A-Z][A-Z0-9_]{0,31}"


@lru_cache(256)
def is_order_type(text: str) -> bool:
    """Whether it may be counted under. The few that there are come again and again."""
    return _ORDER_TYPE.fullmatch(text) is not None


def unreadable(problem: FieldProblem) -> BatchResult:
    """Stands for a result that cannot be read, and is listed as invalid; the path starts at the result."""
    return BatchResult(success=problem)


class Aggregation:
    """Counts the results of one batch by order type.

    Results may be added in portions, so that a large batch does not hold the loop; `summaries` is what they
    come to, order types in the order in which they were first counted. O(n) time, O(order types) memory.
    """

    __slots__ = ("_counts", "ignored", "invalid", "seen")

    def __init__(self) -> None:
        self._counts: dict[str, list[int]] = {}
        self.seen = 0
        """Results looked at so far."""
        self.ignored = 0
        """Successful results whose event type is neither order_created nor order_cancelled."""
        self.invalid: list[FieldProblem] = []
        """Results that should count and cannot; the rest counts all the same."""

    def add(self, results: Iterable[BatchResult]) -> None:
        """Count some more results; see `unreadable` for one that could not even be read."""
        counts = self._counts
        index = self.seen - 1
        for index, result in enumerate(results, self.seen):
            if result.success is not True:
                if result.success is not None and result.success is not False:
                    self._refuse(index, result.success)
                continue
            event_type = result.event_type
            if event_type == "order_created":
                column = 0
            elif event_type == "order_cancelled":
                column = 1
            else:
                self.ignored += 1
                continue
            order_type = result.order_type
            count = counts.get(order_type) if isinstance(order_type, str) else None
            if count is not None:
                count[column] += 1
            elif isinstance(order_type, str) and is_order_type(order_type):
                count = counts[order_type] = [0, 0]
                count[column] = 1
            else:
                self._reject(index, "order_type", _ORDER_TYPE_MESSAGE)
        self.seen = index + 1

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """The counts so far; no summary is empty, since a type is only known once something of it counted."""
        return tuple(Summary(order_type, *count) for order_type, count in self._counts.items())

    def _refuse(self, index: int, success: object) -> None:
        if isinstance(success, FieldProblem):
            self.invalid.append(FieldProblem(f"$.batch_results[{index}]{success.path[1:]}", success.message))
        else:
            self._reject(index, "success", "expected true, false or null")

    def _reject(self, index: int, field: str, message: str) -> None:
        self.invalid.append(FieldProblem(f"$.batch_results[{index}].{field}", message))
