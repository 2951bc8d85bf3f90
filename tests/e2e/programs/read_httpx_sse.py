"""httpx and httpx-sse: URL [LAST_EVENT_ID]. Ends when the connection is cut."""

import json
import sys
from contextlib import suppress

import httpx
from httpx_sse import connect_sse


def main(url: str, last_event_id: str = "") -> None:
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with (
        suppress(httpx.TransportError),
        httpx.Client(timeout=None) as client,
        connect_sse(client, "GET", url, headers=headers) as source,
    ):
        for event in source.iter_sse():
            print(json.dumps([event.event, event.data, event.id]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
