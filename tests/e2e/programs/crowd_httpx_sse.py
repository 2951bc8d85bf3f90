"""httpx and httpx-sse, many users: URL FIRST_USER USERS. Each stream is opened again when it is cut."""

import asyncio
import json
import ssl
import sys
from contextlib import suppress

import httpx
from httpx_sse import aconnect_sse


async def follow(url: str, user_id: int, tls: ssl.SSLContext) -> None:
    position = ""
    # A client for each user: one with thousands of connections looks through all of them on every request.
    async with httpx.AsyncClient(timeout=None, verify=tls, trust_env=False) as client:
        while True:
            headers = {"Last-Event-ID": position} if position else {}
            with suppress(httpx.TransportError):
                async with aconnect_sse(client, "GET", f"{url}&user_id={user_id}", headers=headers) as source:
                    async for event in source.aiter_sse():
                        print(json.dumps([user_id, event.event, event.data, event.id]), flush=True)
                        position = event.id or position


async def main(url: str, first: str, users: str) -> None:
    tls = ssl.create_default_context()
    await asyncio.gather(*(follow(url, int(first) + index, tls) for index in range(int(users))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
