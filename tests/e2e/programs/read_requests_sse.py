"""requests-sse: URL. Reconnects by itself."""

import json
import sys

from requests_sse import EventSource


def main(url: str) -> None:
    with EventSource(url) as source:
        for event in source:
            print(json.dumps([event.type, event.data, event.last_event_id]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
