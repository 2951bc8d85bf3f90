"""Keys that somebody publishes: a JWK set behind a URL, fetched without holding the loop, and kept."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence

from tornado.httpclient import AsyncHTTPClient, HTTPError

from core.auth import KeyProblem, VerificationKey, keys_of_set

REFRESH_SECONDS = 300
"""How long a set is taken to be what it was: a key that is withdrawn counts for so long."""

RETRY_SECONDS = 5
"""Between two looks after one that failed, and between two looks for keys that nobody has heard of: whoever makes up
names of keys shall not make us ask for each."""

FETCH_SECONDS = 5
MAX_SET_BYTES = 256 * 1024

Fetch = Callable[[str], Awaitable[bytes]]

_log = logging.getLogger("tallywire.auth")


class PublishedKeys:
    """`keys` are those of the last set that could be read; none before the first. `clock` is monotonic seconds."""

    def __init__(self, url: str, fetch: Fetch, clock: Callable[[], float]) -> None:
        self.keys: Sequence[VerificationKey] = ()
        self.is_known = False
        """A set has been read."""
        self.is_fresh = False
        """The last look brought one. Until the next that does, the keys of the last set count."""
        self._url = url
        self._fetch = fetch
        self._clock = clock
        self._looked_at = -math.inf
        self._looking: asyncio.Task[None] | None = None

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Look again and again, for ever; to be cancelled."""
        while True:
            await self.look()
            await sleep(REFRESH_SECONDS if self.is_fresh else RETRY_SECONDS)

    def may_look(self) -> bool:
        """A look now could find something new."""
        return self._looking is not None or self._clock() - self._looked_at >= RETRY_SECONDS

    async def look(self) -> None:
        """Fetch the set; who asks while it is being fetched waits for the same answer. Never raises."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        self._looked_at = self._clock()
        self.is_fresh = False
        try:
            keys = keys_of_set(await self._fetch(self._url))
        except (HTTPError, OSError, ValueError, KeyProblem) as error:
            _log.warning("Keys not fetched", extra={"url": self._url, "reason": str(error), "keys": len(self.keys)})
        else:
            if [key.kid for key in keys] != [key.kid for key in self.keys]:
                _log.info("Keys fetched", extra={"url": self._url, "keys": len(keys)})
            self.keys, self.is_known, self.is_fresh = keys, True, True
        finally:
            self._looking = None


async def fetch(url: str) -> bytes:
    """The body of a 200. Raises HTTPError, OSError, ValueError."""
    client = AsyncHTTPClient(max_body_size=MAX_SET_BYTES, force_instance=True)
    try:
        answer = await client.fetch(
            url, connect_timeout=FETCH_SECONDS, request_timeout=FETCH_SECONDS, follow_redirects=False
        )
        return answer.body
    finally:
        client.close()
