"""The emitter at work: one queue, one thread, one call at a time, and an outbox beside the queue.

    emit ──> queue ──> call ──> settled          the thread takes what waits, sends it until each batch has its answer,
               │         ^ │                     then takes what has come meanwhile
               v         └─┘ again, same keys
             outbox ─────^   what the queue has no room for is read back from disk

One call at a time keeps the order, and makes what is settled a prefix. Callers only ever touch the queue and the
outbox, under one lock that is never held while the network is waited for.
"""

import atexit
import contextlib
import itertools
import os
import random
import secrets
import ssl
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tallywire_client import outbox as disk
from tallywire_client._backoff import Backoff
from tallywire_client._complaints import Complaints
from tallywire_client._encoding import MAX_BATCH_BYTES, NotEncodableError, encode_batch, key_of, text_of
from tallywire_client._gatherer import Bounds, Entry, Gatherer
from tallywire_client._records import Handed
from tallywire_client._replies import Again, Answered, Refused, Reply
from tallywire_client._target import EmitConnection, Secret, Target
from tallywire_client.handle import Handle, settle
from tallywire_client.outbox import NotAvailableError, Outbox, OutboxFullError, OutboxOptions
from tallywire_client.results import Accepted, Problem, Rejected, Result, Skipped, Unknown

SCAN_SECONDS = 30.0
"""How often it is looked for folders of processes that have ended."""

MOST_ADOPTED = 4
"""Folders worked on at once: each costs two descriptors, of which an order service has better use for the rest."""

OnFailure = Callable[[str, Result], object]
"""Told of each batch that was taken in and then rejected, or is unknown for good and in no outbox: its line as JSON,
and the result. Called in the thread of the emitter, or in the one that closes it; it should be quick."""


@dataclass(frozen=True, slots=True)
class EmitterOptions:
    """What may be changed, each with its unit. The defaults suit an order service beside its Tallywire."""

    linger_seconds: float = 0.001
    """How long the first batch of a call waits for others."""
    max_call_batches: int = 500
    max_call_bytes: int = 2**20
    max_queue_batches: int = 10_000
    """Batches held in memory, those on their way included; beyond them: the outbox, or `queue_full`."""
    max_queue_bytes: int = 32 * 2**20
    call_timeout_seconds: float = 10.0
    connect_timeout_seconds: float = 3.0
    first_backoff_seconds: float = 0.05
    max_backoff_seconds: float = 10.0
    window_seconds: float = 24 * 3600.0
    """The server's `idempotency_hours`, or less: what may have arrived longer ago is not sent again."""
    exit_seconds: float = 5.0
    """How long the end of the process may wait for what is still to be sent."""

    def __post_init__(self) -> None:
        positive = ("max_call_batches", "max_call_bytes", "max_queue_batches", "max_queue_bytes")
        for name in (*positive, "call_timeout_seconds", "connect_timeout_seconds", "window_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")


@dataclass(frozen=True, slots=True)
class EmitterStatistics:
    """Since this process began to emit: what became of its batches, and what is still to be sent."""

    waiting: int
    waiting_bytes: int
    on_disk: int
    accepted: int
    duplicates: int
    skipped: int
    rejected: int
    unknown: int
    calls: int
    repeated_calls: int


@dataclass(slots=True)
class _Counters:
    accepted: int = 0
    duplicates: int = 0
    skipped: int = 0
    rejected: int = 0
    unknown: int = 0
    calls: int = 0
    repeated_calls: int = 0


@dataclass(slots=True)
class _Work:
    """What one process has and another does not: gone in a forked child, which begins with a new one."""

    gatherer: Gatherer
    pid: int = field(default_factory=os.getpid)
    wake: threading.Condition = field(default_factory=threading.Condition)
    counters: _Counters = field(default_factory=_Counters)
    complaints: Complaints = field(default_factory=Complaints)
    key_prefix: str = field(default_factory=lambda: secrets.token_hex(8))
    key_numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    thread: threading.Thread | None = None
    connection: EmitConnection | None = None
    outbox: Outbox | None = None
    adopted: list[Outbox] = field(default_factory=list)
    on_the_way: list[Entry] = field(default_factory=list)
    spilled: "weakref.WeakValueDictionary[int, Handle]" = field(default_factory=weakref.WeakValueDictionary)
    """Handles of batches that are on disk only, as far as somebody keeps them."""
    spilled_to: int = 0
    """The newest batch on disk that is not in memory; 0 when all are."""
    scan_at: float = 0.0
    is_idle: bool = False
    is_closing: bool = False
    has_closed: bool = False
    close_at: float = float("inf")
    last_problem: str = ""


class Engine:
    """See the module. Public methods may be called by any thread, and raise nothing."""

    def __init__(
        self,
        target: Target,
        secret: Secret,
        options: EmitterOptions,
        outbox: OutboxOptions | None,
        on_failure: OnFailure | None,
        verify: ssl.SSLContext | None,
    ) -> None:
        self._target = target
        self._secret = secret
        self._options = options
        self._outbox_options = outbox
        self._on_failure = on_failure
        self._verify = verify
        self._clock = disk.uptime
        self._random = random.Random()
        self._work = self._new_work()
        _engines.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))
        if outbox is not None:
            with self._work.wake:
                self._begin(self._work)

    # ---- callers

    def emit(self, user_id: int, strategy_id: int, batch_results: object, idempotency_key: str | None) -> Handle:
        """Take a batch in. Whatever goes wrong is in the handle."""
        work = self._own_work()
        try:
            key = f"{work.key_prefix}-{next(work.key_numbers)}" if idempotency_key is None else text_of(idempotency_key)
        except NotEncodableError as error:
            return self._refused(work, "", "not_encodable", str(error))
        try:
            line = encode_batch(user_id, strategy_id, batch_results, key)
        except NotEncodableError as error:
            return self._refused(work, key, "not_encodable", str(error))
        if len(line) > MAX_BATCH_BYTES:
            return self._refused(work, key, "body_too_large", f"the batch has {len(line)} bytes")
        handle = Handle(key)
        with work.wake:
            if work.is_closing:
                code = "closed"
            else:
                self._begin(work)
                code = self._take_in(work, Entry(line, key, handle))
            outbox = work.outbox
        if code:
            return self._refused(work, key, code, _NOT_SENT[code])
        if outbox is not None and self._lasts_through_power_cuts:
            self._sync(work, outbox)
        return handle

    def close(self, timeout_seconds: float) -> None:
        """Send what is still to be sent, for so long at most; what remains is told so. Harmless the second time."""
        work = self._own_work()
        with work.wake:
            work.is_closing = True
            work.close_at = min(work.close_at, time.monotonic() + timeout_seconds)
            work.wake.notify_all()
            thread = work.thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(min(timeout_seconds, threading.TIMEOUT_MAX))
        with work.wake:
            kept = 0 if work.outbox is None or work.has_closed else work.outbox.unsettled
            work.has_closed = True
            given_up = self._give_up(work)
        if kept:
            told = f"{kept}, which the next process that uses it sends"
            work.complaints.complain("Batches stay in the outbox", told)
        self._tell(work, given_up)
        work.complaints.say_the_rest()

    def statistics(self) -> EmitterStatistics:
        """Of this process."""
        work = self._own_work()
        with work.wake:
            counters = work.counters
            return EmitterStatistics(
                work.gatherer.held_batches,
                work.gatherer.held_bytes,
                sum(outbox.unsettled for outbox in (work.outbox, *work.adopted) if outbox is not None),
                counters.accepted,
                counters.duplicates,
                counters.skipped,
                counters.rejected,
                counters.unknown,
                counters.calls,
                counters.repeated_calls,
            )

    def last_problem(self) -> str:
        """Why the last attempt did not go well; empty when it did."""
        return self._work.last_problem

    def forked(self) -> None:
        """In the child of a fork: what waits is the parent's, which sends it."""
        work, self._work = self._work, self._new_work()
        for outbox in (work.outbox, *work.adopted):
            if outbox is not None:
                outbox.abandon()
        # The connection is only let go of: to close it would say good-bye in the parent's name.
        handles = [entry.handle for entry in (*work.on_the_way, *work.gatherer.drain()) if entry.handle is not None]
        for handle in (*handles, *list(work.spilled.values())):
            handle._renew_lock()
            settle([(handle, Unknown("the parent of this process sends it", handle.idempotency_key, is_final=True))])

    def _new_work(self) -> _Work:
        options = self._options
        return _Work(
            Gatherer(
                Bounds(
                    options.max_queue_batches,
                    options.max_queue_bytes,
                    options.max_call_batches,
                    options.max_call_bytes,
                    options.linger_seconds,
                )
            )
        )

    def _own_work(self) -> _Work:
        if self._work.pid != os.getpid():
            # Forked by something that told Python nothing of it.
            self.forked()
        return self._work

    def _begin(self, work: _Work) -> None:
        """The thread runs, and the outbox is open. Under the lock."""
        if work.thread is not None and work.thread.is_alive():
            return
        if work.outbox is None and self._outbox_options is not None:
            work.outbox = self._create_outbox(work, self._outbox_options)
        thread = threading.Thread(target=self._run, args=(work,), name="tallywire-emitter", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # No more threads, or the interpreter is ending.
            work.complaints.complain("Emitter thread not started", str(error))
            return
        work.thread = thread
        _finish_in_child_processes(self)

    def _create_outbox(self, work: _Work, options: OutboxOptions) -> Outbox | None:
        try:
            return Outbox.create(options, self._target.name())
        except OSError as error:
            work.complaints.complain("Outbox not available, batches are in memory only", str(error))
            return None

    def _take_in(self, work: _Work, entry: Entry) -> str:
        """Into the outbox and the queue. Answers the code of the problem, if there is one. Under the lock."""
        kept = work.outbox is not None and self._keep(work, work.outbox, entry)
        has_room = work.gatherer.has_room_for(len(entry.line))
        if has_room and not work.spilled_to:
            work.gatherer.add(entry, time.monotonic())
            if work.is_idle or work.gatherer.is_full_call:
                work.wake.notify()
            return ""
        if not kept:
            return "queue_full"
        if not work.spilled_to and work.outbox is not None:
            work.outbox.read_from_last()
        work.spilled_to = entry.seq
        if entry.handle is not None:
            work.spilled[entry.seq] = entry.handle
        return ""

    def _keep(self, work: _Work, outbox: Outbox, entry: Entry) -> bool:
        try:
            entry.seq = outbox.append(entry.line, time.time())
        except OutboxFullError as error:
            work.complaints.complain("Outbox full, batches are in memory only", str(error))
            return False
        return True

    @property
    def _lasts_through_power_cuts(self) -> bool:
        return self._outbox_options is not None and self._outbox_options.durability == "power"

    def _sync(self, work: _Work, outbox: Outbox) -> None:
        try:
            outbox.sync()
        except OSError as error:
            work.complaints.complain("Outbox not synced", str(error))

    def _refused(self, work: _Work, key: str, code: str, detail: str) -> Handle:
        result = Rejected(Problem(code, detail), key)
        with work.wake:
            work.counters.rejected += 1
        work.complaints.complain(f"Batch not sent: {code}", detail)
        return Handle(key, result)

    # ---- the thread

    def _run(self, work: _Work) -> None:
        while self._work is work:
            try:
                call = self._next_call(work)
                if call is None:
                    break
                if call:
                    if not self._deliver(work, call, work.outbox):
                        break
                    with work.wake:
                        work.on_the_way = []
                        work.gatherer.release(call)
                self._look_after_the_abandoned(work)
            except Exception as error:
                # A fault of ours must end neither the thread nor what waits behind it.
                work.complaints.complain("Emitter fault", f"{type(error).__name__}: {error}")
                self._fail_what_is_on_the_way(work, error)
                time.sleep(self._options.first_backoff_seconds)
        with work.wake:
            self._let_go(work)

    def _next_call(self, work: _Work) -> list[Entry] | None:
        """Wait for something to do. An empty call: look after the abandoned. None: closed, and nothing is left."""
        with work.wake:
            while True:
                self._refill(work)
                seconds = work.gatherer.seconds_until_due(time.monotonic())
                if seconds is not None and (seconds == 0 or work.is_closing):
                    work.on_the_way = work.gatherer.take()
                    return work.on_the_way
                if work.is_closing:
                    return None
                if seconds is None and (work.adopted or self._is_scan_due(work)):
                    return []
                work.is_idle = seconds is None
                try:
                    work.wake.wait(self._idle_seconds(work) if seconds is None else seconds)
                finally:
                    work.is_idle = False

    def _is_scan_due(self, work: _Work) -> bool:
        return self._outbox_options is not None and time.monotonic() >= work.scan_at

    def _idle_seconds(self, work: _Work) -> float | None:
        return None if self._outbox_options is None else max(0.0, work.scan_at - time.monotonic())

    def _refill(self, work: _Work) -> None:
        """What went to disk for want of room comes back once everything before it has been sent. Under the lock."""
        if not work.spilled_to or work.outbox is None or len(work.gatherer):
            return
        for handed in self._read_back(work, work.outbox):
            handle = work.spilled.pop(handed.seq, None)
            entry = Entry(handed.line, key_of(handed.line), handle, handed.seq)
            work.gatherer.add(entry, time.monotonic())
            if handed.seq >= work.spilled_to:
                work.spilled_to = 0
        if not len(work.gatherer):
            work.complaints.complain("Outbox damaged", "batches that were handed over cannot be read")
            work.spilled_to = 0
        if not work.spilled_to and work.spilled:
            reason = "the outbox could not be read back"
            lost = [(each, Unknown(reason, each.idempotency_key, is_final=True)) for each in work.spilled.values()]
            work.spilled.clear()
            for result in settle(lost):
                _count(work.counters, result)

    def _read_back(self, work: _Work, outbox: Outbox) -> list[Handed]:
        """Nothing where the folder has gone from under it: what comes after goes its way without."""
        try:
            return outbox.read(self._options.max_call_batches, self._options.max_call_bytes)
        except OSError as error:
            work.complaints.complain("Outbox cannot be read", str(error))
            # What is written to a file without a name is read by nobody.
            work.outbox = None
            outbox.abandon()
            return []

    def _deliver(self, work: _Work, call: list[Entry], outbox: Outbox | None) -> bool:
        """Send until each batch has its answer. Answers False when closing came first."""
        backoff = Backoff(self._options.first_backoff_seconds, self._options.max_backoff_seconds, self._random.uniform)
        left = list(call)
        keys_looked_up = False
        while True:
            left = self._drop_expired(work, left)
            if not left:
                break
            reply = self._attempt(work, left, outbox)
            if isinstance(reply, Refused) and not reply.is_of_the_batches and not keys_looked_up:
                keys_looked_up = True
                if self._secret.has_changed():
                    continue
            left, again = self._take_reply(work, left, reply, outbox)
            if again is None:
                continue
            work.last_problem = again.reason
            work.complaints.complain("Emit not answered, it is repeated", again.reason)
            if not self._pause(work, backoff.next_seconds(again.after_seconds)):
                return False
        if outbox is not None:
            with work.wake:
                outbox.settle(max(entry.seq for entry in call))
        return True

    def _attempt(self, work: _Work, left: list[Entry], outbox: Outbox | None) -> Reply:
        started = self._clock()
        newly_tried = [entry for entry in left if entry.first_attempt is None]
        upto = max(entry.seq for entry in left)
        # Before the disk is waited for: whoever gives up meanwhile cannot say of them that they were never sent.
        for entry in newly_tried:
            entry.first_attempt = started
        if outbox is not None and upto and newly_tried:
            self._note_attempt(work, outbox, upto)
        reply = self._post(work, left)
        has_not_arrived = reply.is_unsent if isinstance(reply, Again) else isinstance(reply, Refused)
        if has_not_arrived and newly_tried:
            for entry in newly_tried:
                entry.first_attempt = None
            if outbox is not None and len(newly_tried) == len(left):
                with work.wake:
                    outbox.revoke(upto)
        return reply

    def _note_attempt(self, work: _Work, outbox: Outbox, upto: int) -> None:
        try:
            with work.wake:
                outbox.attempt(upto, disk.now())
        except OutboxFullError as error:
            work.complaints.complain("Outbox did not note an attempt", str(error))
        # Not under the lock: no emit waits for the disk because of a call that is on its way.
        if self._lasts_through_power_cuts:
            self._sync(work, outbox)

    def _post(self, work: _Work, entries: Sequence[Entry]) -> Reply:
        if work.connection is None:
            work.connection = EmitConnection(
                self._target, self._secret, self._options.connect_timeout_seconds, self._verify
            )
        work.counters.calls += 1
        seconds = min(self._options.call_timeout_seconds, max(0.05, work.close_at - time.monotonic()))
        body = b"\n".join([entry.line for entry in entries])
        return work.connection.post(body, [entry.key for entry in entries], seconds)

    def _take_reply(
        self, work: _Work, left: list[Entry], reply: Reply, outbox: Outbox | None
    ) -> tuple[list[Entry], Again | None]:
        """Settle what is settled. Answers what is to be sent again, and after which failure."""
        match reply:
            case Again():
                work.counters.repeated_calls += 1
                return left, reply
            case Answered(answers):
                pairs = list(zip(left, answers, strict=True))
                self._settle(work, [(entry, each) for entry, each in pairs if not isinstance(each, Again)])
                remaining = [entry for entry, each in pairs if isinstance(each, Again)]
                failures = [each for each in answers if isinstance(each, Again)]
                if not failures:
                    work.last_problem = ""
                return remaining, failures[0] if failures else None
            case Refused(problem) if reply.is_of_the_batches:
                return self._find_the_culprit(work, left, problem, outbox)
            case Refused(problem):
                work.last_problem = f"{problem.status} {problem.code}: {problem.detail}"
                work.complaints.complain("Emit refused, whatever it carries", work.last_problem)
                if outbox is not None:
                    # Nothing says that the batches are at fault: they stay until an operator has put it right.
                    return left, Again(work.last_problem)
                self._settle(work, [(entry, _refused(entry, problem)) for entry in left])
                return [], None

    def _find_the_culprit(
        self, work: _Work, left: list[Entry], problem: Problem, outbox: Outbox | None
    ) -> tuple[list[Entry], Again | None]:
        """One batch at fault must not take its neighbours with it: each is sent by itself."""
        if len(left) == 1:
            self._settle(work, [(left[0], _refused(left[0], problem))])
            return [], None
        remaining: list[Entry] = []
        for place, entry in enumerate(left):
            rest, again = self._take_reply(work, [entry], self._attempt(work, [entry], outbox), outbox)
            remaining += rest
            if again is not None:
                # Not further: what was handed over later is not to be accepted earlier.
                return remaining + left[place + 1 :], again
        return remaining, None

    def _drop_expired(self, work: _Work, entries: list[Entry]) -> list[Entry]:
        """Those that the server may have forgotten by the time that an answer could come are not sent again."""
        last_moment = self._clock() + self._options.call_timeout_seconds - self._options.window_seconds
        expired = [entry for entry in entries if entry.first_attempt is not None and entry.first_attempt < last_moment]
        if not expired:
            return entries
        hours = self._options.window_seconds / 3600
        reason = f"first sent more than {hours:g} hours ago, when the server may have forgotten it: not sent again"
        self._settle(work, [(entry, Unknown(reason, entry.key, is_final=True)) for entry in expired])
        if self._outbox_options is not None:
            for entry in expired:
                disk.report(self._outbox_options, entry.line, time.time())
        gone = set(map(id, expired))
        return [entry for entry in entries if id(entry) not in gone]

    def _settle(self, work: _Work, settled: Sequence[tuple[Entry, Result]]) -> None:
        with work.wake:
            for _entry, result in settled:
                _count(work.counters, result)
        settle((entry.handle, result) for entry, result in settled if entry.handle is not None)
        self._tell(work, settled)

    def _tell(self, work: _Work, settled: Sequence[tuple[Entry, Result]]) -> None:
        """The log and `on_failure`, of what did not go well."""
        for _entry, result in settled:
            if isinstance(result, Accepted) and result.invalid:
                # Callers that were written for another emitter look at no handle.
                first = result.invalid[0]
                told = f"{result.idempotency_key} {len(result.invalid)}, as {first.path}: {first.message}"
                work.complaints.complain("Results not counted, the others of their batch were", told)
        failed = [(entry, result) for entry, result in settled if isinstance(result, Rejected | Unknown)]
        for entry, result in failed:
            if isinstance(result, Rejected):
                told = f"{entry.key} {result.problem.code}: {result.problem.detail}"
                work.complaints.complain("Batch refused, not counted", told, result.problem.code)
            else:
                work.complaints.complain("Batch given up, unknown whether counted", f"{entry.key} {result.reason}")
            if self._on_failure is not None:
                try:
                    self._on_failure(entry.line.decode(), result)
                except BaseException as error:  # SystemExit would end the thread, and with it whatever waits.
                    work.complaints.complain("on_failure failed", f"{type(error).__name__}: {error}")

    def _pause(self, work: _Work, seconds: float) -> bool:
        """Wait before the next attempt. Answers False when closing leaves no time for one."""
        until = time.monotonic() + seconds
        with work.wake:
            while (now := time.monotonic()) < until:
                if now + 0.01 >= work.close_at:
                    return False
                work.wake.wait(min(until, work.close_at) - now)
            return time.monotonic() < work.close_at and self._work is work

    def _fail_what_is_on_the_way(self, work: _Work, error: Exception) -> None:
        with work.wake:
            call, work.on_the_way = work.on_the_way, []
            work.gatherer.release(call)
        reason = f"a fault of the client: {type(error).__name__}"
        handles = [(entry.handle, Unknown(reason, entry.key, is_final=True)) for entry in call if entry.handle]
        work.counters.unknown += len(settle(handles))

    # ---- what others left behind

    def _look_after_the_abandoned(self, work: _Work) -> None:
        """Adopt folders of processes that have ended, and send one call from each."""
        options = self._outbox_options
        if options is None:
            return
        if time.monotonic() >= work.scan_at:
            work.scan_at = time.monotonic() + SCAN_SECONDS
            if work.outbox is None:
                # It could not be made, or has gone: perhaps it can be made now.
                outbox = self._create_outbox(work, options)
                with work.wake:
                    work.outbox = outbox
            self._adopt(work, options)
        for outbox in list(work.adopted):
            if work.is_closing or not self._send_some_of(work, outbox):
                return

    def _adopt(self, work: _Work, options: OutboxOptions) -> None:
        held: set[Path] = {outbox.folder for outbox in (work.outbox, *work.adopted) if outbox is not None}
        for folder in disk.abandoned(options, self._target.name(), held):
            if len(work.adopted) == MOST_ADOPTED:
                break
            try:
                adopted = Outbox.adopt(folder, options)
            except NotAvailableError:
                continue
            except OSError as error:
                work.complaints.complain("Outbox not adopted", str(error))
                continue
            with work.wake:
                work.adopted.append(adopted)

    def _send_some_of(self, work: _Work, outbox: Outbox) -> bool:
        """One call. Answers False when closing came first."""
        try:
            handed = outbox.read(self._options.max_call_batches, self._options.max_call_bytes)
        except OSError as error:
            # It stays as it is; the next look is at the next scan.
            work.complaints.complain("Outbox cannot be read", str(error))
            with work.wake:
                work.adopted.remove(outbox)
                outbox.abandon()
            return True
        if not handed:
            with work.wake:
                outbox.settle(outbox.last_seq)
                if len(work.adopted) == MOST_ADOPTED:
                    # There may be more of them.
                    work.scan_at = 0.0
                work.adopted.remove(outbox)
                outbox.close()
            return True
        here, there = self._clock(), disk.now()
        call = []
        for each in handed:
            first = outbox.first_attempt(each.seq)
            attempted = None if first is None else here - there.seconds_since(first)
            call.append(Entry(each.line, key_of(each.line), None, each.seq, attempted))
        return self._deliver(work, call, outbox)

    # ---- the end

    def _give_up(self, work: _Work) -> list[tuple[Entry, Result]]:
        """Tell who waits that this process sends nothing more; answers what nobody will send. Under the lock."""
        left = [*work.on_the_way, *work.gatherer.drain()]
        on_disk = list(work.spilled.values())
        handles = [(entry.handle, self._untold(entry)) for entry in left if entry.handle is not None]
        kept = [(handle, Unknown(_KEPT, handle.idempotency_key, is_final=True)) for handle in on_disk]
        for result in settle([*handles, *kept]):
            _count(work.counters, result)
        work.on_the_way = []
        given_up = [(entry, entry.handle.result(0)) for entry in left if entry.handle is not None and not entry.seq]
        if work.thread is None or not work.thread.is_alive():
            self._let_go(work)
        return given_up

    def _untold(self, entry: Entry) -> Result:
        if entry.seq:
            return Unknown(_KEPT, entry.key, is_final=True)
        if entry.first_attempt is None:
            return Rejected(Problem("closed", "the emitter was closed before it could be sent"), entry.key)
        return Unknown("the emitter was closed before there was an answer", entry.key, is_final=True)

    def _let_go(self, work: _Work) -> None:
        if work.connection is not None:
            work.connection.close()
            work.connection = None
        for outbox in (work.outbox, *work.adopted):
            if outbox is not None:
                outbox.close()
        work.outbox = None
        work.adopted = []


_KEPT = "it is kept in the outbox: the next process that uses it sends it"

_NOT_SENT = {"closed": "the emitter is closed", "queue_full": "as many batches wait as may be held"}

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def _refused(entry: Entry, problem: Problem) -> Result:
    """That a repetition was refused tells nothing about the attempt before it, which may have been accepted."""
    if entry.first_attempt is None:
        return Rejected(problem, entry.key)
    reason = (
        f"refused when it was repeated ({problem.status} {problem.code}); an earlier attempt may have been accepted"
    )
    return Unknown(reason, entry.key, is_final=True)


def _count(counters: _Counters, result: Result) -> None:
    match result:
        case Accepted(duplicate=True):
            counters.accepted += 1
            counters.duplicates += 1
        case Accepted():
            counters.accepted += 1
        case Skipped():
            counters.skipped += 1
        case Rejected():
            counters.rejected += 1
        case Unknown():
            counters.unknown += 1


def _close_at_exit(engine_reference: "weakref.ref[Engine]") -> None:
    engine = engine_reference()
    if engine is not None:
        engine.close(engine._options.exit_seconds)


def _finish_in_child_processes(engine: Engine) -> None:
    """Children of multiprocessing end without atexit, and have finalizers of their own."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _close_at_exit, (weakref.ref(engine),), exitpriority=0)


def _forked() -> None:
    for engine in list(_engines):
        with contextlib.suppress(Exception):
            engine.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
