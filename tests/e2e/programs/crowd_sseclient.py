"""urllib3 and sseclient-py, many users: URL FIRST_USER USERS. Each stream, a thread, is opened again when it is cut."""

import json
import sys
import threading
from contextlib import suppress

import urllib3
from sseclient import SSEClient

STACK_BYTES = 512 * 1024
"""Little, as there are thousands of threads."""

printing = threading.Lock()


def follow(url: str, user_id: int) -> None:
    pool = urllib3.PoolManager()
    headers = {"Accept": "text/event-stream"}
    while True:
        with suppress(urllib3.exceptions.HTTPError):
            response = pool.request("GET", f"{url}&user_id={user_id}", headers=headers, preload_content=False)
            for event in SSEClient(response).events():
                with printing:
                    print(json.dumps([user_id, event.event, event.data, event.id]), flush=True)
                if event.id:
                    headers["Last-Event-ID"] = event.id


def main(url: str, first: str, users: str) -> None:
    threading.stack_size(STACK_BYTES)
    for index in range(int(users)):
        threading.Thread(target=follow, args=(url, int(first) + index)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
