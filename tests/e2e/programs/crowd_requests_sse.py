"""requests-sse, many users: URL FIRST_USER USERS. Each stream, a thread, reconnects by itself."""

import json
import sys
import threading
from datetime import timedelta

from requests_sse import EventSource, InvalidContentTypeError, InvalidStatusCodeError

STACK_BYTES = 512 * 1024
"""Little, as there are thousands of threads."""

RECONNECT_AFTER = timedelta(milliseconds=5)
"""Until the stream names a time of its own."""

printing = threading.Lock()


def follow(url: str, user_id: int) -> None:
    position = ""
    while True:
        # The standard library takes a head that ends early for a whole one, and then the client gives up.
        try:
            with EventSource(
                f"{url}&user_id={user_id}", reconnection_time=RECONNECT_AFTER, latest_event_id=position
            ) as source:
                for event in source:
                    with printing:
                        print(json.dumps([user_id, event.type, event.data, event.last_event_id]), flush=True)
                    position = event.last_event_id
        except (InvalidContentTypeError, InvalidStatusCodeError):
            continue


def main(url: str, first: str, users: str) -> None:
    threading.stack_size(STACK_BYTES)
    for index in range(int(users)):
        threading.Thread(target=follow, args=(url, int(first) + index)).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
