"""Emitting, for an order service: hand a batch over and go on.

An emit returns at once and raises nothing; what came of it is in its handle, for whoever wants to know. Sync and async
code use the same engine, whose thread does the work: a loop that is busy with orders delays no batch, and a server
that is away delays no loop.
"""

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Iterable, Mapping
from threading import RLock
from types import TracebackType
from typing import Self

from tallywire_client._engine import EmitterOptions, EmitterStatistics, Engine, OnFailure
from tallywire_client._target import Secret, Target
from tallywire_client.handle import Handle
from tallywire_client.outbox import OutboxOptions, Reported, read_report
from tallywire_client.results import Problem, Rejected

_log = logging.getLogger("tallywire_client")

DEFAULT_OPTIONS = EmitterOptions()


class _BaseEmitter:
    """What the two emitters have in common. The constructor is the one place that raises: ValueError or OSError, for
    an address, a key file or an option that cannot be right."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        key_file: str | os.PathLike[str] | None = None,
        outbox: OutboxOptions | str | os.PathLike[str] | None = None,
        options: EmitterOptions = DEFAULT_OPTIONS,
        on_failure: OnFailure | None = None,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self._url = url
        if outbox is not None and not isinstance(outbox, OutboxOptions):
            outbox = OutboxOptions(outbox)
        self._outbox_options = outbox
        self._engine = Engine(Target(url), Secret(key, key_file), options, outbox, on_failure, verify)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._url!r})"

    def emit_order_batch_update(
        self,
        user_id: int,
        strategy_id: int,
        batch_results: Iterable[Mapping[str, object]],
        *,
        idempotency_key: str | None = None,
    ) -> Handle:
        """Hand a batch over. Returns at once: what it waits for is a lock and, with an outbox, a write to a file.

        Never raises: an argument that is no good, a queue that is full, a server that refuses are told by the handle
        (`Rejected`), in the log and in `statistics()`. Results are read before it returns, so the list may be changed
        afterwards. Without a key one is made; with one of your own, say the id of the order run, calling again after
        a crash of yours counts once, too.
        """
        try:
            return self._engine.emit(user_id, strategy_id, batch_results, idempotency_key)
        except Exception as error:
            # Whatever it is, the caller's orders have been executed, and go on.
            _log.exception("Batch not sent: client_fault")
            key = str(idempotency_key or "")
            return Handle(key, Rejected(Problem("client_fault", f"{type(error).__name__}: {error}"), key))

    def statistics(self) -> EmitterStatistics:
        """What became of the batches of this process."""
        return self._engine.statistics()

    @property
    def last_problem(self) -> str:
        """Why the last attempt did not go well; empty when it did."""
        return self._engine.last_problem()

    def outbox_report(self) -> list[Reported]:
        """Batches of the outbox that were not sent again since the server may have forgotten them."""
        return [] if self._outbox_options is None else read_report(self._outbox_options)


class Emitter(_BaseEmitter):
    """For threads. A context manager: leaving it closes it."""

    def close(self, timeout: float = 5.0) -> None:
        """Send what waits, for at most `timeout` seconds. What is left then is told by its handles, or stays in the
        outbox. The end of the process does the same within `exit_seconds`."""
        self._engine.close(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncEmitter(_BaseEmitter):
    """For tasks: `emit_order_batch_update` is not awaited, its handle may be. An async context manager."""

    async def close(self, timeout: float = 5.0) -> None:
        """As that of `Emitter`; the loop goes on meanwhile."""
        await asyncio.get_running_loop().run_in_executor(None, self._engine.close, timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


_default: Emitter | None = None
_default_lock = RLock()


def configure(emitter: Emitter | None) -> None:
    """Let the function `emit_order_batch_update` use this emitter; None: the one that the environment describes."""
    global _default
    with _default_lock:
        _default = emitter


def from_environment(environment: Mapping[str, str] | None = None) -> Emitter:
    """The emitter that the environment describes. Raises ValueError, or OSError for a key file that cannot be read.

    `TALLYWIRE_URL`, required; `TALLYWIRE_KEY_FILE` or `TALLYWIRE_KEY`; `TALLYWIRE_OUTBOX`, a folder.
    """
    names = os.environ if environment is None else environment
    url = names.get("TALLYWIRE_URL", "")
    if not url:
        raise ValueError("TALLYWIRE_URL is not set: the address of the internal listener, as http://127.0.0.1:8081")
    return Emitter(
        url,
        key=names.get("TALLYWIRE_KEY") or None,
        key_file=names.get("TALLYWIRE_KEY_FILE") or None,
        outbox=names.get("TALLYWIRE_OUTBOX") or None,
    )


def emit_order_batch_update(
    user_id: int,
    strategy_id: int,
    batch_results: Iterable[Mapping[str, object]],
    *,
    idempotency_key: str | None = None,
) -> Handle:
    """As that of an emitter, with the one of this process. It is made at the first call; where the environment does
    not describe one, the handle and the log say so (`not_configured`)."""
    global _default
    emitter = _default
    if emitter is None:
        with _default_lock:
            try:
                emitter = _default = _default or from_environment()
            except (ValueError, OSError) as error:
                _log.error("Batch not sent: not_configured: %s", error)
                key = idempotency_key or ""
                return Handle(key, Rejected(Problem("not_configured", str(error)), key))
    return emitter.emit_order_batch_update(user_id, strategy_id, batch_results, idempotency_key=idempotency_key)


def _renew_default_lock() -> None:
    global _default_lock
    _default_lock = RLock()


with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_renew_default_lock)
