"""The client in `clients/js`: its own tests on Node, and its types as they are written and shown."""

import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.programs import installed
from tests.process import ROOT, running_server
from tests.tokens import SECRET, claims, token

CLIENT = ROOT / "clients" / "js"
COMPILER = Path(__file__).parent / "node_modules" / "typescript" / "bin" / "tsc"
LEAST_TESTS = 90
"""A run that found no tests is no success."""

REACT = """
declare module 'react' {
  export function useState<T>(initial: T): [T, (next: T) => void]
  export function useEffect(effect: () => () => void, dependencies: readonly unknown[]): void
}
"""
"""What a recipe needs of it."""

MISUSE = (
    "new TallywireStream({ url: '/', strategyIds: '*', strategies: [3] })",
    "new TallywireStream({ url: '/' })",
    "stream.on('order_batch_updates', () => {})",
    "stream.on('order_batch_update', event => event.summaries)",
    "stream.totals.set(3, [])",
    "stream.totals.get(3)![0].created = 1",
)

ONE_COUNT = """
import { TallywireStream } from './tallywire.js'
const [url, auth, token] = process.argv.slice(1)
const stream = new TallywireStream({ url, auth, token: () => token, strategyIds: '*' })
stream.on('error', error => console.log(error.message))
stream.on('totals', ({ totals }) => {
  console.log(JSON.stringify([...totals]))
  stream.close()
})
"""
"""Prints the totals that it starts with. It ends when nothing is left that would keep it: it never says so itself."""


def node(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([installed("node"), *arguments], cwd=CLIENT, capture_output=True, text=True, check=False)


def test_the_tests_of_the_client_pass_on_node() -> None:
    done = node("--test", "--test-reporter=tap", *sorted(f"test/{path.name}" for path in CLIENT.glob("test/*.test.js")))

    assert done.returncode == 0, done.stdout
    (passed,) = re.findall(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert int(passed) >= LEAST_TESTS


def compiled(scratch: Path, *sources: str) -> str:
    """What the compiler has to say about modules, nothing if they are sound."""
    if not COMPILER.is_file():
        pytest.skip("npm ci has not been run in tests/e2e: `make test` does it where there is npm")
    package = scratch / "node_modules" / "tallywire-client"
    package.parent.mkdir()
    package.symlink_to(CLIENT)
    files = {"react.d.ts": REACT, **{f"page{number}.ts": source for number, source in enumerate(sources)}}
    for name, text in files.items():
        (scratch / name).write_text(text)
    options = ["--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "--preserveSymlinks"]
    return node(str(COMPILER), *options, *[str(scratch / name) for name in files]).stdout


def test_code_that_is_shown_fits_the_types(tmp_path: Path) -> None:
    shown = re.findall(r"^```ts\n(.*?)^```$", (ROOT / "docs" / "clients.md").read_text(), re.MULTILINE | re.DOTALL)

    assert len(shown) > 1
    assert compiled(tmp_path, *shown) == ""


def test_the_types_refuse_what_cannot_be_meant(tmp_path: Path) -> None:
    before = "import { TallywireStream } from 'tallywire-client'\ndeclare const stream: TallywireStream\n"
    said = compiled(tmp_path, before + "\n".join(MISUSE))

    lines = [int(line) for line in re.findall(r"^[^\n]*page0\.ts\((\d+),", said, re.MULTILINE)]
    assert sorted(set(lines)) == list(range(3, 3 + len(MISUSE))), said


def test_the_module_has_what_its_types_say() -> None:
    declared = re.findall(r"^export declare class (\w+)", (CLIENT / "tallywire.d.ts").read_text(), re.MULTILINE)
    members = "Object.getOwnPropertyNames(client.TallywireStream.prototype)"
    done = node(
        "--input-type=module",
        "--eval",
        f"import * as client from './tallywire.js'; console.log(Object.keys(client).sort().join(), {members}.join())",
    )

    names, own = done.stdout.split()
    assert names.split(",") == sorted(declared)
    assert set(own.split(",")) == {
        "constructor",
        "state",
        "role",
        "error",
        "position",
        "totals",
        "on",
        "snapshot",
        "close",
    }


@pytest.mark.parametrize("auth", ["bearer", "ticket"])
def test_a_program_on_node_shows_its_token_and_ends_when_its_stream_is_closed(auth: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    with running_server("--auth=jwt", f"--jwt-keys=HS256={secret}", "--durability=none") as server:
        server.emit(7, 3, {"success": True, "order_type": "LIMIT", "event_type": "order_created"})
        shown = token(claims(time.time(), strategies=[3]))
        done = node("--input-type=module", "--eval", ONE_COUNT, f"{server.public}/stream", auth, shown)

    assert done.stderr == ""
    assert done.stdout.strip() == '[[3,[{"order_type":"LIMIT","created":1,"cancelled":0}]]]'
