"""urllib3 and sseclient-py: URL [LAST_EVENT_ID]. Ends when the connection is cut."""

import json
import sys
from contextlib import suppress

import urllib3
from sseclient import SSEClient


def main(url: str, last_event_id: str = "") -> None:
    headers = {"Accept": "text/event-stream"}
    if last_event_id:
        headers["Last-Event-ID"] = last_event_id
    response = urllib3.PoolManager().request("GET", url, headers=headers, preload_content=False)
    with suppress(urllib3.exceptions.HTTPError):
        for event in SSEClient(response).events():
            print(json.dumps([event.event, event.data, event.id]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
