"""Reading a stream: `for event in stream(…)`, or `async for`, for ever, over cuts, restarts and resets."""

import asyncio
import inspect
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Literal, TypedDict
from urllib.parse import urlsplit

import httpx2

from tallywire_client._follower import Follower
from tallywire_client._replies import read_problem, seconds_of
from tallywire_client._target import Target, usable
from tallywire_client.events import Event
from tallywire_client.results import Problem, Summary

Token = str | Callable[[], str | Awaitable[str]]
"""A bearer token, or what gets one: it is asked before each connection, since a token ends."""

CONNECT_SECONDS = 10.0
FRESH_TOKENS = 3
"""How many tokens in a row may be refused before it is said, where there is somebody to ask for another one."""

MAX_PROBLEM_BYTES = 64 * 1024


class StreamRefusedError(Exception):
    """The server said no, and would again: see `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail}")
        self.problem = problem


def stream(
    url: str,
    *,
    user_id: int | None = None,
    strategies: Sequence[int] | Literal["*"] = "*",
    token: Token | None = None,
    last_event_id: str = "",
    verify: ssl.SSLContext | None = None,
) -> "Stream":
    """The events of a user's strategies, from the head or behind `last_event_id`.

    `url`: the public listener; or an address with the path of a stream, as `http://127.0.0.1:8081/internal/stream`;
    or `unix:/path`. Where the token says who reads, `user_id` may be left out. Raises ValueError for an address that
    is none; iterating raises StreamRefusedError, ValueError for a token that is none, and whatever `token` raises.
    """
    parameters: dict[str, str | Sequence[str]] = {"heartbeat": "event", "totals": "1", "shape": "envelope"}
    if user_id is not None:
        parameters["user_id"] = str(user_id)
    parameters["strategy_id"] = "*" if strategies == "*" else [str(each) for each in strategies]
    return Stream(url, parameters, token, last_event_id, verify)


class Stream:
    """One reader, to be iterated once, by a thread or by a task. It comes back by itself, and ends when the server
    says for good. `position` and `totals` belong together: to go on later, store the position and pass it as
    `last_event_id`; the totals are stated again."""

    def __init__(
        self,
        url: str,
        parameters: Mapping[str, str | Sequence[str]],
        token: Token | None,
        last_event_id: str,
        verify: ssl.SSLContext | None,
    ) -> None:
        self._target = Target(url)
        base = self._target.base_url
        self._url = base if urlsplit(base).path else f"{base}/stream"
        self._parameters = parameters
        self._token = token
        self._verify = verify if verify is not None else base.startswith("https:")
        self._follower = Follower(last_event_id, random.uniform)
        self._refused_tokens = 0

    def __repr__(self) -> str:
        return f"Stream({self._url!r}, position={self.position!r})"

    @property
    def position(self) -> str:
        """That of the last event that was handed over."""
        return self._follower.position

    @property
    def totals(self) -> Mapping[int, tuple[Summary, ...]]:
        """By strategy, the counts since the journal began, at `position`."""
        return dict(self._follower.totals)

    @property
    def misfits(self) -> int:
        """How many frames did not go on where the stream stood; each was dropped, and asked for again."""
        return self._follower.misfits

    # ---- in a thread

    def __iter__(self) -> Iterator[Event]:
        """Waits for events, for ever."""
        transport = httpx2.HTTPTransport(verify=self._verify, trust_env=False, uds=self._target.socket_path)
        with httpx2.Client(transport=transport, trust_env=False) as client:
            while not self._follower.is_over:
                yield from self._connection(client)
                if not self._follower.is_over:
                    time.sleep(self._follower.wait_seconds())

    def _connection(self, client: httpx2.Client) -> Iterator[Event]:
        token = self._token() if callable(self._token) else self._token
        if not isinstance(token, str | None):
            raise TypeError("token returns an awaitable: iterate with async for")
        patience = self._follower.silence_seconds
        after_seconds = 0.0
        try:
            with client.stream("GET", self._url, **self._request(token, patience)) as response:
                if not _is_stream(response):
                    after_seconds = self._take_refusal(response, _head_of(response.iter_raw()))
                    return
                self._connected()
                for piece in response.iter_raw():
                    for event in self._follower.feed(piece):
                        if event is None:
                            return
                        yield event
                    if self._follower.silence_seconds > patience:
                        return
        except (httpx2.HTTPError, OSError):
            pass
        finally:
            self._follower.ended(after_seconds)

    # ---- in a task

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Waits for events, for ever."""
        transport = httpx2.AsyncHTTPTransport(verify=self._verify, trust_env=False, uds=self._target.socket_path)
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            while not self._follower.is_over:
                async for event in self._async_connection(client):
                    yield event
                if not self._follower.is_over:
                    await asyncio.sleep(self._follower.wait_seconds())

    async def _async_connection(self, client: httpx2.AsyncClient) -> AsyncIterator[Event]:
        given = self._token() if callable(self._token) else self._token
        token = await given if inspect.isawaitable(given) else given
        patience = self._follower.silence_seconds
        after_seconds = 0.0
        try:
            async with client.stream("GET", self._url, **self._request(token, patience)) as response:
                if not _is_stream(response):
                    after_seconds = self._take_refusal(response, await _async_head_of(response.aiter_raw()))
                    return
                self._connected()
                async for piece in response.aiter_raw():
                    for event in self._follower.feed(piece):
                        if event is None:
                            return
                        yield event
                    if self._follower.silence_seconds > patience:
                        return
        except (httpx2.HTTPError, OSError):
            pass
        finally:
            self._follower.ended(after_seconds)

    # ---- both

    def _request(self, token: str | None, patience: float) -> "_Request":
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", "Accept-Encoding": "identity"}
        if token:
            headers["Authorization"] = f"Bearer {usable(token)}"
        if self.position:
            headers["Last-Event-ID"] = self.position
        timeout = httpx2.Timeout(CONNECT_SECONDS, read=patience)
        return {"params": self._parameters, "headers": headers, "timeout": timeout}

    def _connected(self) -> None:
        self._refused_tokens = 0
        self._follower.connected()

    def _take_refusal(self, response: httpx2.Response, body: bytes) -> float:
        """After how many seconds to come back. Raises StreamRefusedError when that would change nothing."""
        if response.status_code == 200:
            return 0.0
        problem = _problem_of(response.status_code, body)
        if response.status_code == 401 and callable(self._token):
            self._refused_tokens += 1
            if self._refused_tokens < FRESH_TOKENS:
                return 0.0
        if problem.retry == "no":
            raise StreamRefusedError(problem)
        return seconds_of(response.headers.get("Retry-After", ""))


class _Request(TypedDict):
    params: Mapping[str, str | Sequence[str]]
    headers: Mapping[str, str]
    timeout: httpx2.Timeout


def _is_stream(response: httpx2.Response) -> bool:
    """A head without a type is one that was cut."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == "text/event-stream"


def _head_of(pieces: Iterator[bytes]) -> bytes:
    body = b""
    for piece in pieces:
        body += piece
        if len(body) > MAX_PROBLEM_BYTES:
            break
    return body


async def _async_head_of(pieces: AsyncIterator[bytes]) -> bytes:
    body = b""
    async for piece in pieces:
        body += piece
        if len(body) > MAX_PROBLEM_BYTES:
            break
    return body


def _problem_of(status: int, body: bytes) -> Problem:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = {}
    return read_problem(fields if isinstance(fields, dict) else {}, status)
