"""What counts as well-formed, and as alike or more strictly."""

import pytest

from tests.http.strictness import Outcome, in_plain_words, is_steady, is_well_formed, shown, why_worse
from tests.http.wire import BATCH, Answer, chunked, emit_request, read_answers, request

LIVE = request("/healthz/live")

WELL_FORMED = {
    "a GET": LIVE,
    "three": LIVE * 3,
    "a body": emit_request(),
    "chunks": emit_request("Transfer-Encoding: chunked", body=chunked(BATCH, b"x")),
    "chunked in capitals": emit_request("TRANSFER-ENCODING: CHUNKED", body=chunked()),
    "HTTP/1.0 without a host": request("/", version="1.0", host=""),
    "other methods": request("/", method="PATCH") + request("/", method="TRACE"),
    "Connection: close": request("/", "Connection: Close"),
    "an offer to upgrade": request("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    "an asterisk": request("*", method="OPTIONS"),
    "escapes": request("/a%2fb?c=%00&d=?/"),
    "an empty value": request("/", "X:"),
    "tabs and latin-1 in a value": request("/", "X:\t\xe4\t"),
    "a host with a port": request("/", host="a:80"),
    "a host in IPv6": request("/", host="[::1]:80"),
}
NOT_WELL_FORMED = {
    "nothing": b"",
    "half a head": LIVE[:-1],
    "half a body": emit_request()[:-1],
    "half a second one": LIVE + LIVE[:-1],
    "junk behind": LIVE + b"x",
    "half of the chunks": emit_request("Transfer-Encoding: chunked", body=chunked(BATCH))[:-1],
    "an empty line in front": b"\r\n" + LIVE,
    "bare LF": LIVE.replace(b"\r\n", b"\n"),
    "one bare LF": LIVE.replace(b"\r\n", b"\n", 1),
    "a bare CR": request("/", "X: a\rb"),
    "a null in a value": request("/", "X: \0"),
    "a fold": request("/", "X: a\r\n b"),
    "a space before a colon": request("/", "X : a"),
    "an empty name": request("/", ": a"),
    "no colon": request("/", "X"),
    "no host": request("/", host=""),
    "two hosts": request("/", "Host: b"),
    "a bad host": request("/", host="a b"),
    "two lengths": request("/", "Content-Length: 0", "Content-Length: 0"),
    "a length with a sign": request("/", "Content-Length: +0"),
    "a length and chunks": request("/", "Content-Length: 5", "Transfer-Encoding: chunked", body=chunked()),
    "chunks in HTTP/1.0": request("/", "Transfer-Encoding: chunked", version="1.0", body=chunked()),
    "another coding": request("/", "Transfer-Encoding: gzip, chunked", body=chunked()),
    "an extension": request("/", "Transfer-Encoding: chunked", body=b"1;a\r\nx\r\n0\r\n\r\n"),
    "a trailer": request("/", "Transfer-Encoding: chunked", body=b"0\r\nX: a\r\n\r\n"),
    "a chunk that is too long": request("/", "Transfer-Encoding: chunked", body=b"1\r\nxx\r\n0\r\n\r\n"),
    "HTTP/1.2": request("/", version="1.2"),
    "HTTP/2.0": request("/", version="2.0"),
    "an absolute target": request("http://a/"),
    "a target without a slash": request("a"),
    "a bad escape": request("/%zz"),
    "a target beyond ASCII": request("/\xe4"),
    "two spaces": LIVE.replace(b" ", b"  ", 1),
    "a method of others": request("/", method="BREW"),
    "a method in lower case": request("/", method="get"),
    "Connection: close among others": request("/", "Connection: close, te"),
    "two Connection headers": request("/", "Connection: te", "Connection: te"),
    "a bad method": request("/", method="G,T"),
}


@pytest.mark.parametrize("sent", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_a_request_that_leaves_no_choice_is_well_formed(sent: bytes) -> None:
    assert is_well_formed(sent)


@pytest.mark.parametrize("sent", NOT_WELL_FORMED.values(), ids=NOT_WELL_FORMED.keys())
def test_any_other_request_is_not(sent: bytes) -> None:
    assert not is_well_formed(sent)


IN_PLAIN_WORDS = {
    b"\r\n\r\n" + LIVE: LIVE,
    LIVE + b"\r\n" + LIVE: LIVE * 2,
    emit_request() + b"\n\n" + LIVE: emit_request() + LIVE,
    LIVE.replace(b" ", b"   ", 2): LIVE,
    emit_request("Transfer-Encoding: chunked", body=b'5;a="b"\r\nhello\r\n0;c\r\nX: y\r\n\r\n') + LIVE: emit_request(
        "Transfer-Encoding: chunked", body=chunked(b"hello")
    )
    + LIVE,
}


@pytest.mark.parametrize(("sent", "plain"), IN_PLAIN_WORDS.items())
def test_what_a_server_may_overlook_is_taken_away(sent: bytes, plain: bytes) -> None:
    assert not is_well_formed(sent)
    assert in_plain_words(sent) == plain
    assert is_well_formed(plain)


@pytest.mark.parametrize("sent", WELL_FORMED.values(), ids=WELL_FORMED.keys())
def test_what_is_well_formed_is_plain(sent: bytes) -> None:
    assert in_plain_words(sent) == sent


OURS = (("server", "tallywire"), ("content-length", "0"))
CLOSING = (*OURS, ("connection", "close"))


def answered(*statuses: int, is_closed: bool = False, headers: tuple[tuple[str, str], ...] = OURS) -> Outcome:
    """These answers, with nothing in them."""
    return Outcome(tuple(Answer(status, headers, b"", is_whole=True) for status in statuses), is_closed)


CLOSED = True
SAME = [answered(), answered(is_closed=CLOSED), answered(200), answered(400, is_closed=CLOSED), answered(200, 404)]
MALFORMED = NOT_WELL_FORMED["bare LF"]

STRICTER = {
    "it refuses what was taken": (answered(200), answered(400, is_closed=CLOSED)),
    "it refuses the second that was taken": (answered(200, 200), answered(200, 400, is_closed=CLOSED)),
    "it cuts what was taken": (answered(200), answered(is_closed=CLOSED)),
    "it cuts what was refused": (answered(400, is_closed=CLOSED), answered(is_closed=CLOSED)),
    "it says why where nothing was said": (answered(is_closed=CLOSED), answered(431, is_closed=CLOSED)),
    "it refuses what waits for more": (answered(), answered(400, is_closed=CLOSED)),
    "it refuses for another reason": (answered(400, is_closed=CLOSED), answered(431, is_closed=CLOSED)),
    "it stops behind the first": (answered(200, 404, 200), answered(200, is_closed=CLOSED)),
    "it refuses at the end what waited": (answered(200), answered(200, 400)),
    "it closes what was kept": (answered(200), answered(200, is_closed=CLOSED)),
}
WORSE = {
    "it takes what was refused": (answered(400, is_closed=CLOSED), answered(200, is_closed=CLOSED)),
    "it takes what was cut": (answered(is_closed=CLOSED), answered(200, is_closed=CLOSED)),
    "it takes what was incomplete": (answered(), answered(200)),
    "it refuses and goes on": (answered(200), answered(400, 200)),
    "it refuses smuggled bytes by and by": (answered(200), answered(200, 404, 404)),
    "it answers otherwise": (answered(200), answered(204)),
    "it waits where the oracle refused": (answered(400, is_closed=CLOSED), answered()),
    "it waits where the oracle answered": (answered(200), answered()),
    "it waits behind a refusal of its own": (answered(200, is_closed=CLOSED), answered(400)),
    "it keeps what was closed": (answered(200, is_closed=CLOSED), answered(200)),
    "it hangs": (answered(), Outcome((), is_closed=False, is_hanging=True)),
    "it says that it closes and does not": (answered(200), answered(200, headers=CLOSING)),
    "it says that it closes and goes on": (answered(200, 200), answered(200, 200, headers=CLOSING)),
    "it fails": (answered(400, is_closed=CLOSED), answered(500, is_closed=CLOSED)),
    "it fails as the oracle does": (answered(500), answered(500)),
}


@pytest.mark.parametrize("outcome", SAME, ids=str)
@pytest.mark.parametrize("sent", [LIVE, MALFORMED], ids=["well-formed", "malformed"])
def test_the_same_is_alike(outcome: Outcome, sent: bytes) -> None:
    assert why_worse(sent, outcome, outcome) is None


@pytest.mark.parametrize(("oracle", "front"), STRICTER.values(), ids=STRICTER.keys())
def test_a_front_may_be_stricter_with_what_is_malformed_and_with_nothing_else(oracle: Outcome, front: Outcome) -> None:
    assert why_worse(MALFORMED, oracle, front) is None
    assert why_worse(LIVE, oracle, front) is not None


@pytest.mark.parametrize(("oracle", "front"), WORSE.values(), ids=WORSE.keys())
@pytest.mark.parametrize("sent", [LIVE, MALFORMED], ids=["well-formed", "malformed"])
def test_a_front_may_never_be_laxer(oracle: Outcome, front: Outcome, sent: bytes) -> None:
    assert why_worse(sent, oracle, front) is not None


def test_a_front_may_not_answer_what_is_smuggled_behind_a_refusal() -> None:
    assert why_worse(MALFORMED, answered(400, is_closed=CLOSED), answered(400, 200)) is not None


def test_a_well_formed_request_is_answered_with_the_same_headers_and_body() -> None:
    right = Outcome((Answer(200, (("a", "b"),), b"x", is_whole=True),), is_closed=False)
    for wrong in (
        Answer(200, (), b"x", is_whole=True),
        Answer(200, (("a", "c"),), b"x", is_whole=True),
        Answer(200, (("a", "b"),), b"y", is_whole=True),
    ):
        assert why_worse(LIVE, right, Outcome((wrong,), is_closed=False)) is not None
        assert why_worse(MALFORMED, right, Outcome((wrong,), is_closed=False)) is not None


def test_a_front_may_go_on_where_the_oracle_cuts_unasked_and_there_only() -> None:
    unasked = answered(405, is_closed=CLOSED)
    asked = answered(405, is_closed=CLOSED, headers=CLOSING)

    assert why_worse(LIVE * 2, unasked, answered(405, 200)) is None
    assert why_worse(LIVE * 2, unasked, answered(405)) is None
    assert why_worse(LIVE * 2, asked, answered(405, 200, headers=CLOSING)) is not None
    assert why_worse(LIVE * 2, answered(200, is_closed=CLOSED), answered(200, 200)) is not None


def test_a_refusal_of_tornado_itself_may_be_said_in_more_words() -> None:
    bare = answered(400, is_closed=CLOSED, headers=())

    assert why_worse(LIVE, bare, answered(422, is_closed=CLOSED)) is None
    assert why_worse(LIVE, bare, answered(200, is_closed=CLOSED)) is not None
    assert why_worse(LIVE, answered(400, is_closed=CLOSED), answered(422, is_closed=CLOSED)) is not None


def test_another_split_may_name_another_fault_of_what_is_malformed_and_change_nothing_else() -> None:
    def refused(status: int, detail: bytes, *, is_closed: bool = True) -> Outcome:
        return Outcome((Answer(status, (), detail, is_whole=True),), is_closed)

    one = refused(400, b"the size")
    assert is_steady(MALFORMED, one, one)
    assert is_steady(MALFORMED, one, refused(400, b"the version"))
    assert not is_steady(LIVE, one, refused(400, b"the version"))
    assert not is_steady(MALFORMED, one, refused(431, b"the size"))
    assert not is_steady(MALFORMED, one, refused(400, b"the size", is_closed=False))
    assert not is_steady(MALFORMED, refused(200, b"a"), refused(200, b"b"))
    assert not is_steady(MALFORMED, answered(200), answered(200, 400))


def test_what_differs_each_time_is_not_compared() -> None:
    def answer(date: str, request_id: str, position: str) -> Answer:
        body = b'{"position":"%b","request_id":"%b"}' % (position.encode(), request_id.encode())
        head = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nX-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        (read,) = read_answers(head.encode() + body)
        return read

    one, other = answer("Wed", "0123456789abcdef", "epoch-9"), answer("Thu", "fedcba9876543210", "other-10")
    assert one != other
    assert shown(one) == shown(other)
    assert shown(answer("Wed", "given", "epoch-9")) != shown(answer("Wed", "other", "epoch-9"))


def test_answers_are_read_by_their_framing() -> None:
    received = (
        b"HTTP/1.1 100 (Continue)\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
        b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        b"HTTP/1.1 400 Bad Request\r\n\r\n"
    )
    answers = read_answers(received, are_to_head=[1])

    assert [(answer.status, answer.body) for answer in answers] == [
        (100, b""),
        (200, b""),
        (200, b"abc"),
        (204, b""),
        (200, b"de"),
        (400, b""),
    ]
    for cut in (received[: received.index(b"abc") + 1], received[: received.index(b"de") + 1]):
        assert [answer.is_whole for answer in read_answers(cut, are_to_head=[1])][-2:] == [True, False]
