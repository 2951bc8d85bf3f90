"""Requests with random mistakes are answered like the oracle answers them, or more strictly, however they are split."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, note
from hypothesis import settings as effort
from hypothesis import strategies as st
from tornado.ioloop import IOLoop

import server
from core.settings import Settings
from tests.fronts import ORACLE, OTHERS
from tests.http.conftest import port_of, with_settings
from tests.http.probe import in_pieces, judge, outcome_of
from tests.http.strictness import Outcome, is_steady, is_well_formed
from tests.http.wire import BATCH, chunked, emit_request, request

EXAMPLES = 200

REQUESTS = (
    request("/healthz/live"),
    request("/nowhere", "X-Request-Id: given", method="POST", body=b"hello"),
    request("/healthz/ready?for=emit", version="1.0", host=""),
    request("/internal/keys/123456/3", "Connection: keep-alive", version="1.0"),
    emit_request(),
    emit_request("Connection: close"),
    emit_request("Transfer-Encoding: chunked", body=chunked(BATCH)),
    emit_request("Transfer-Encoding: chunked", body=chunked(BATCH[:50], BATCH[50:])),
    emit_request("Transfer-Encoding: chunked", body=chunked(request("/healthz/live"))),
)
MISTAKES = (
    *(bytes([byte]) for byte in b'\0\t\n\r\x0b\x0c "(),/:;?@[]{}\x7f\x80\xa0\xff0159afxG+-_%*'),
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"\r\n ",
    b" :",
    b", ",
    b"0\r\n\r\n",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"HTTP/2.0",
    b"Host: b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"X-Request-Id: other\r\n",
    request("/healthz/live"),
)
LINE_STARTS = b"\r\n"


@pytest.fixture
def settings() -> Settings:
    """Whose Host is judged elsewhere (test_guard.py): here it is only to be read."""
    return with_settings(insecure=("internal",))


@st.composite
def sent_bytes(draw: st.DrawFn) -> bytes:
    """Up to three requests with up to three mistakes, half of them where a line begins."""
    data = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from((0, 1, 1, 1, 2, 2, 3)))):
        starts = [at + 2 for at in range(len(data)) if data.startswith(LINE_STARTS, at)]
        at = draw(st.one_of(st.integers(0, len(data)), st.sampled_from(starts or [0])))
        gone = draw(st.sampled_from((0, 0, 0, 1, 1, 2, 5)))
        data = data[:at] + draw(st.one_of(st.sampled_from(MISTAKES), st.binary(max_size=2))) + data[at + gone :]
    return data


def _pieces(sent: bytes, cuts: Sequence[float]) -> list[bytes]:
    places = sorted({0, len(sent), *(int(cut * len(sent)) for cut in cuts)})
    return [sent[start:end] for start, end in pairwise(places)]


CUTS = st.lists(st.floats(0, 1, exclude_max=True), max_size=4)


@pytest.mark.parametrize("front", OTHERS)
def test_random_mistakes_are_answered_like_the_oracle_does_or_more_strictly(
    fronts: dict[str, server.Listeners], io_loop: IOLoop, front: str
) -> None:
    oracle_port, port = port_of(fronts[ORACLE].internal), port_of(fronts[front].internal)

    @effort(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(sent=sent_bytes(), cuts=CUTS)
    def check(sent: bytes, cuts: list[float]) -> None:
        whole = _ask(io_loop, port, [sent])
        note(f"{front}: {whole}, well-formed: {is_well_formed(sent)}")
        assert io_loop.run_sync(partial(judge, sent, whole, oracle_port)) is None
        for pieces in (_pieces(sent, cuts), in_pieces(sent)):
            split = _ask(io_loop, port, pieces)
            assert is_steady(sent, whole, split), f"{split} when split into {pieces}"

    check()


def _ask(io_loop: IOLoop, port: int, pieces: list[bytes]) -> Outcome:
    outcome: Outcome = io_loop.run_sync(partial(outcome_of, port, pieces))
    return outcome
