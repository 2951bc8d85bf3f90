"""Pictures of the console for the documents: `make screenshots`.

A real server with a day of orders running through it, hundreds of readers, some of them slow. The hours of the day but
the last are emitted to a server whose clock is set back, and put on hour by hour; where libfaketime is missing, every
count falls in the hour of now.
"""

import random
import selectors
import socket
import struct
import sys
import tempfile
import time
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from typing import Any

from playwright.sync_api import Browser, Page

from tests.e2e.day import DayBatch, batches, day_of_orders
from tests.e2e.test_clients import browser
from tests.e2e.test_clock import LIBRARIES, Clock
from tests.process import ROOT, ServerProcess, running_server, wait_until

DOCS = ROOT / "docs"
USER, OTHERS = 7, (8, 9, 11, 12)
READERS, SLOW = 400, 4
HOURS = 7
"""The trading day of an exchange."""

EMITS_PER_SECOND = 40
SLOW_SECONDS = 12
"""How long the slow readers read nothing; then everything."""

WATCHED_SECONDS = 100
"""How long the charts are watched before the picture is taken."""

MOST_BYTES = 200_000
WIDTH, HEIGHT, SCALE = 1280, 860, 2


def main() -> None:
    """Write `docs/console-*.png`."""
    events, is_real = day_of_orders()
    print(f"{len(events):,} events of {'the real' if is_real else 'a made-up'} day", file=sys.stderr)
    day = list(batches(events))
    with tempfile.TemporaryDirectory(prefix="tallywire-screenshots-") as directory:
        journal = f"--journal={directory}/tallywire.db"
        share = len(day) // HOURS
        if LIBRARIES:
            hours = [day[hour * share : (hour + 1) * share] for hour in range(HOURS - 1)]
            _emit_the_hours_before(Clock(Path(directory) / "clock"), journal, hours)
        options = ("--console-emit=on", "--heartbeat-seconds=5", "--max-streams-per-user=0")
        with (
            running_server(journal, *options) as server,
            _readers(server),
            _flow(server, day[(HOURS - 1) * share :]),
            browser() as chromium,
        ):
            _take_all(chromium, server)


def _emit_the_hours_before(clock: Clock, journal: str, hours: Sequence[Sequence[DayBatch]]) -> None:
    clock.step(f"-{len(hours)}h")
    with running_server(journal, "--durability=process", command_prefix=clock.command()) as server:
        for ago, some in zip(range(len(hours), 0, -1), hours, strict=True):
            clock.step(f"-{ago}h")
            waiting = iter(some)
            while call := list(islice(waiting, 100)):
                server.post("/internal/emit", [batch.fields(USER) for batch in call])
        clock.step("+0")
        server.stop()


@contextmanager
def _flow(server: ServerProcess, day: Sequence[DayBatch]) -> Iterator[None]:
    """The order service at work, over and over again, more in some moments than in others."""
    enough = Event()
    chance = random.Random(20120621)

    def work() -> None:
        beat = 0
        while not enough.is_set():
            for batch in day:
                beat += 1
                pace = EMITS_PER_SECOND * (0.7 + 0.6 * abs((beat / 900) % 2 - 1))
                if enough.wait(chance.expovariate(pace)):
                    return
                server.post("/internal/emit", batch.fields(chance.choice((USER, USER, USER, *OTHERS))))

    thread = Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


@contextmanager
def _readers(server: ServerProcess) -> Iterator[None]:
    """Streams of several users. Some come and go; a few read only now and then, and fall behind."""
    enough = Event()
    chance = random.Random(7)
    reading = selectors.DefaultSelector()
    slow: list[socket.socket] = []

    def open_one(user_id: int, *, is_slow: bool = False) -> socket.socket:
        reader = socket.socket()
        if is_slow:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.connect(("127.0.0.1", server.public_port))
        strategy = "*" if is_slow else chance.choice((1, 2, 3, 4, "*"))
        target = f"/stream?user_id={user_id}&strategy_id={strategy}&totals=1"
        reader.sendall(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        reader.setblocking(False)
        if not is_slow:
            reading.register(reader, selectors.EVENT_READ)
        return reader

    def work() -> None:
        for _ in range(READERS):
            open_one(chance.choice((USER, *OTHERS)))
        slow.extend(open_one(USER, is_slow=True) for _ in range(SLOW))
        next_read = time.monotonic() + SLOW_SECONDS
        while not enough.is_set():
            for key, _ in reading.select(0.05):
                assert isinstance(key.fileobj, socket.socket)
                if not _drain(key.fileobj):
                    reading.unregister(key.fileobj)
                    key.fileobj.close()
            if time.monotonic() > next_read:
                next_read += SLOW_SECONDS / SLOW
                slow.append(slow.pop(0))
                while _drain(slow[-1], until_empty=True):
                    pass
            if chance.random() < 0.03:
                gone = chance.choice(list(reading.get_map().values())).fileobj
                assert isinstance(gone, socket.socket)
                reading.unregister(gone)
                gone.close()
                open_one(chance.choice((USER, *OTHERS)))

    thread = Thread(target=work)
    thread.start()
    wait_until(lambda: server.get("/internal/connections")["connections"] >= READERS, "the readers")
    try:
        yield
    finally:
        enough.set()
        thread.join()
        for key in list(reading.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        for reader in slow:
            reader.close()


def _drain(reader: socket.socket, *, until_empty: bool = False) -> bool:
    """Whether there will be more, at all or, with `until_empty`, now."""
    try:
        return bool(reader.recv(65536))
    except BlockingIOError:
        return not until_empty
    except OSError:
        return False


def _take_all(chromium: Browser, server: ServerProcess) -> None:
    page = _page(chromium, "light")
    _open(page, server, "overview")
    time.sleep(WATCHED_SECONDS)
    _save(page, "overview")
    page.get_by_role("button", name="Theme").click()
    page.get_by_role("button", name="Theme").click()
    page.wait_for_timeout(500)
    _save(page, "overview-dark")
    page.close()
    page = _page(chromium, "light")
    _open(page, server, f"stream?user_id={USER}&strategy_id=3&strategy_id=4")
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="Disconnect").click()
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="Resume").click()
    page.locator(".events li", has_text="batches in one").first.wait_for()
    page.get_by_role("button", name="Pause").click()
    _save(page, "stream")
    _open(page, server, f"hours?user_id={USER}")
    page.locator("canvas").wait_for()
    _save(page, "hours")
    _open(page, server, "connections")
    page.locator("tbody tr").first.wait_for()
    _save(page, "connections")
    page.close()


def _page(chromium: Browser, colours: str) -> Page:
    return chromium.new_page(
        viewport={"width": WIDTH, "height": HEIGHT},
        device_scale_factor=SCALE,
        color_scheme="dark" if colours == "dark" else "light",
        locale="en-GB",
        timezone_id="UTC",
    )


def _open(page: Page, server: ServerProcess, place: str) -> None:
    page.goto(f"{server.internal}/console/#/{place}")
    page.locator("main .page > *").first.wait_for(state="attached")


def _save(page: Page, name: str) -> None:
    path = DOCS / f"console-{name}.png"
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(WIDTH / 2, 4)
    path.write_bytes(_with_a_palette(page, page.screenshot()))
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes", file=sys.stderr)
    assert size < MOST_BYTES


# ---- small pictures

PALETTE = """async encoded => {
  const bytes = Uint8Array.from(atob(encoded), each => each.charCodeAt(0))
  const image = await createImageBitmap(new Blob([bytes], { type: 'image/png' }))
  const context = new OffscreenCanvas(image.width, image.height).getContext('2d')
  context.drawImage(image, 0, 0)
  const { data } = context.getImageData(0, 0, image.width, image.height)
  const pixels = new Uint32Array(data.buffer)
  const counts = new Map()
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1)
  const channels = [0, 8, 16]
  const distance = (one, other) =>
    channels.reduce((sum, at) => sum + ((one >> at & 255) - (other >> at & 255)) ** 2, 0)
  const palette = []
  // Of colours that nobody can tell apart the most frequent one stays; nearer ones are taken where there is room.
  for (const least of [300, 60, 12, 1]) {
    for (const [colour] of [...counts].sort(([, one], [, other]) => other - one)) {
      if (palette.length === 256) break
      if (palette.every(each => distance(each, colour) >= least)) palette.push(colour)
    }
  }
  const places = new Map()
  for (const colour of counts.keys()) {
    let [place, best] = [0, Infinity]
    palette.forEach((each, index) => {
      const off = distance(each, colour)
      if (off < best) [place, best] = [index, off]
    })
    places.set(colour, place)
  }
  const indices = pixels.reduce((text, pixel) => { text.push(String.fromCharCode(places.get(pixel))); return text }, [])
  return { width: image.width, height: image.height, palette, indices: btoa(indices.join('')) }
}"""
"""The pixels of a picture as places in a palette of 256 colours: a fifth of the bytes, and no difference to be seen."""


def _with_a_palette(page: Page, picture: bytes) -> bytes:
    blank = page.context.browser.new_page()  # type: ignore[union-attr]  # it has one
    found: Any = blank.evaluate(PALETTE, b64encode(picture).decode())
    blank.close()
    width, height = found["width"], found["height"]
    indices = b64decode(found["indices"])
    # Each line without a filter: what stands in it are no brightnesses.
    lines = b"".join(b"\0" + indices[at : at + width] for at in range(0, width * height, width))
    colours = b"".join(bytes((each & 255, each >> 8 & 255, each >> 16 & 255)) for each in found["palette"])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


if __name__ == "__main__":
    main()
