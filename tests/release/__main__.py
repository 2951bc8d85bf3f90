"""`python -m tests.release DIRECTORY`: installs each distribution of the directory into an empty environment and tries
it there. For `make dist`.

Servers are tried with the client of the same directory, and clients with its first server: as files of that release,
from outside the repository.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 30

FILES = ("/console/", "/console/shell.js", "/console/pages/overview.js", "/console/vendor/uPlot.esm.js")
"""That come with the package and not from its code; `/tallywire.js` is on the other listener."""

TRY_CLIENT = """
import sys
from tallywire_client import Accepted, Emitter, stream
public, internal = sys.argv[1:]
created = {"success": True, "order_type": "LIMIT", "event_type": "order_created"}
with Emitter(internal) as emitter:
    result = emitter.emit_order_batch_update(7, 3, [created]).result(20)
assert isinstance(result, Accepted), result
opening = next(iter(stream(public + "/stream", user_id=7, strategies=[3])))
print(opening)
"""


def main() -> None:
    """Fails with what went wrong."""
    directory = Path(sys.argv[1]).resolve()
    servers = _found(directory, "tallywire-0", "tallywire-1")
    clients = _found(directory, "tallywire_client-")
    with tempfile.TemporaryDirectory(prefix="tallywire-release-") as scratch:
        for number, server in enumerate(servers):
            place = Path(scratch) / f"server-{number}"
            python = _installed(server, place)
            with _serving(python, place) as (public, internal):
                _try_server(public, internal)
                print(f"{server.name}: serves", flush=True)
                for client in clients if number == 0 else ():
                    python = _installed(client, Path(scratch) / client.name)
                    _run(str(python), "-I", "-c", TRY_CLIENT, public, internal)
                    print(f"{client.name}: emits and reads", flush=True)


def _found(directory: Path, *beginnings: str) -> list[Path]:
    found = sorted(file for file in directory.iterdir() if file.name.startswith(beginnings))
    kinds = {"".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix for file in found}
    if kinds != {".whl", ".tar.gz"}:
        raise SystemExit(f"{directory} has no wheel and sdist of {beginnings[0]}…: {[file.name for file in found]}")
    return found


def _installed(distribution: Path, place: Path) -> Path:
    """The interpreter of an environment with nothing else in it."""
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    _run(str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", str(distribution))
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


@contextmanager
def _serving(python: Path, place: Path) -> Iterator[tuple[str, str]]:
    """Public and internal base URL of a server of that environment, with its journal at `place`."""
    log = place / "log"
    listens = ("--public-listen=127.0.0.1:0", "--internal-listen=127.0.0.1:0", "--log-format=json")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TALLYWIRE_", "PYTHON"))}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [python.parent / "tallywire", "serve", *listens], cwd=place, env=environment, stderr=stderr
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while '"Ready"' not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"not ready:\n{log.read_text()}")
            time.sleep(0.05)
        ready = next(json.loads(line) for line in log.read_text().splitlines() if '"Ready"' in line)
        yield ready["public"], ready["internal"]
        process.terminate()
        if process.wait(START_SECONDS):
            raise SystemExit(f"did not end in order:\n{log.read_text()}")
    finally:
        process.kill()
        process.wait()


def _try_server(public: str, internal: str) -> None:
    for url in (f"{public}/tallywire.js", f"{public}/healthz/ready", f"{internal}/openapi.json", f"{internal}/metrics"):
        _get(url)
    for path in FILES:
        _get(internal + path)
    if b'fan_out="c"' not in _get(f"{internal}/metrics"):
        raise SystemExit("it was built without its part in C")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    if not body:
        raise SystemExit(f"{url} is empty")
    return body


if __name__ == "__main__":
    main()
