"""What can be said of the console's files without a browser."""

import configparser
import json
import re
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any

import pytest

from handlers.console import ConsoleHandler
from handlers.files import STATIC
from tests.process import ROOT

CONSOLE = STATIC / "console"
VENDOR = CONSOLE / "vendor"
VENDORED: Any = json.loads((VENDOR / "vendored.json").read_text())
STYLES = (CONSOLE / "console.css").read_text()
SCRIPTS = [path for path in CONSOLE.rglob("*.js") if VENDOR not in path.parents]
PAGES = sorted(path.stem for path in (CONSOLE / "pages").glob("*.js"))
DOCUMENT = (ROOT / "docs" / "console.md").read_text()

LEAST_TEXT, LEAST_GRAPHIC = 4.5, 3.0
"""Contrast that WCAG 2.2 AA asks for: 1.4.3 of text, 1.4.11 of lines and marks."""


def test_what_is_vendored_is_what_was_released() -> None:
    for name, library in VENDORED.items():
        assert library["version"], name
        assert library["licence"], name
        for file, digest in library["files"].items():
            assert sha256((VENDOR / file).read_bytes()).hexdigest() == digest, file
    assert {file for each in VENDORED.values() for file in each["files"]} == {
        path.name for path in VENDOR.iterdir() if path.name != "vendored.json"
    }


def test_every_file_is_part_of_an_installation() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["handlers"].split()
    # A pattern of setuptools does not reach into folders.
    packed = {
        path.relative_to(STATIC.parent).as_posix()
        for path in STATIC.rglob("*")
        if any(
            fnmatchcase(path.name, pattern.rpartition("/")[2])
            and path.parent.relative_to(STATIC.parent).as_posix() == pattern.rpartition("/")[0]
            for pattern in patterns
        )
    }

    assert {path.relative_to(STATIC.parent).as_posix() for path in STATIC.rglob("*") if path.is_file()} <= packed


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_served(script: Any) -> None:
    imported = re.findall(r"(?:from|import) '(\.[^']+)'", script.read_text())

    for name in imported:
        there = (script.parent / name).resolve().relative_to(CONSOLE.resolve()).as_posix()
        assert there in ConsoleHandler.files, name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_of_text_or_leaves_this_server(script: Any) -> None:
    text = script.read_text()

    assert re.findall(r"innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function", text) == []
    assert re.findall(r"""['"`](?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.]""", text) == []


def test_the_page_has_no_inline_script_and_no_inline_style() -> None:
    page = (CONSOLE / "index.html").read_text()

    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_only_the_theme_is_ever_stored(script: Any) -> None:
    stored = re.findall(r"(?:localStorage|sessionStorage|indexedDB|document\.cookie)[^\n]*", script.read_text())

    assert [line for line in stored if "'tallywire.theme'" not in line] == []


def test_every_page_is_in_the_document() -> None:
    assert [name for name in PAGES if f"`#/{name}`" not in DOCUMENT] == []


# ---- colours


def colours(theme: int) -> dict[str, str]:
    """Name and value of each colour: 0 light, 1 dark."""
    return {name: pair[theme] for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", STYLES)}


def luminance(colour: str) -> float:
    """Relative, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_everything_that_it_stands_on(theme: int) -> None:
    known = colours(theme)
    pairs = [(text, ground) for text in ("text", "muted", "accent") for ground in ("surface", "raised", "sunken")]
    pairs += [(state, f"{state}-soft") for state in ("good", "warn", "bad", "accent")]
    pairs += [(state, "raised") for state in ("good", "warn", "bad")] + [("on-accent", "accent")]

    assert {pair: low for pair in pairs if (low := contrast(known[pair[0]], known[pair[1]])) < LEAST_TEXT} == {}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_of_charts_and_edges_of_controls_can_be_seen(theme: int) -> None:
    known = colours(theme)
    names = [*(f"series-{number}" for number in range(1, 9)), "line-strong", "focus"]

    assert {name: low for name in names if (low := contrast(known[name], known["raised"])) < LEAST_GRAPHIC} == {}
