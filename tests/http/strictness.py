"""When a front answers like the oracle, or more strictly: pure, without sockets.

`is_well_formed` knows the requests that RFC 9112 leaves no choice about. To them every front answers alike. To any
other bytes a front may refuse what the oracle takes, and cut where it answers; it may never take what the oracle
refuses, answer more often, keep a client waiting that the oracle lets go, or fail. Whatever was sent: an answer that
says that the connection ends is the last one.
"""

import re

from msgspec import Struct

from tests.http.wire import Answer

_METHOD = rb"(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE)"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PCHAR = rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_HOST = rb"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2}|\[[0-9A-Fa-f:.]+\])+(?::[0-9]*)?"
_TARGET = rb"(?:/" + _PCHAR + rb"*)+(?:\?(?:" + _PCHAR + rb"|[/?])*)?"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*"

_HEAD = re.compile(
    rb"%b (?:%b|\*) HTTP/1\.(?P<minor>[01])\r\n(?P<fields>(?:%b:%b\r\n)*)\r\n" % (_METHOD, _TARGET, _TOKEN, _VALUE)
)
_CONNECTION = re.compile(rb"(?:close|keep-alive)?|(?!.*(?:close|keep-alive)).*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,15}")
_CHUNKS = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,15})\r\n")

_MADE_ID = re.compile(r"[0-9a-f]{16}")
_VARYING = re.compile(rb'("request_id":"|"position":"|retry: )[^"\n]+|id: \S+')


_OVERLOOKED = (
    # Sections 2.2 and 3 of RFC 9112: empty lines ahead of a request line, more than one space in it.
    (re.compile(rb"\A[\r\n]+"), b""),
    (re.compile(rb"(\r\n\r\n|}|hello)[\r\n]+(?=[A-Z]+ |\Z)"), rb"\1"),
    (re.compile(rb"^([A-Z]+) +(\S+) +(?=HTTP/)", re.MULTILINE), rb"\1 \2 "),
    # Sections 7.1.1 and 7.1.2: extensions of chunks, trailers behind them.
    (re.compile(rb"^([0-9A-Fa-f]+);[^\r\n]*(?=\r\n)", re.MULTILINE), rb"\1"),
    (re.compile(rb"(\r\n0\r\n)(?:%b:%b\r\n)+(?=\r\n)" % (_TOKEN, _VALUE)), rb"\1"),
)


class Outcome(Struct, frozen=True):
    """What became of some bytes that were sent on a connection of their own."""

    answers: tuple[Answer, ...]
    """All final ones, until the end of the connection."""
    is_closed: bool
    """The server closed by itself; otherwise it waited for more until the client left."""
    is_hanging: bool = False
    """It did not let go of the connection even then."""

    @property
    def statuses(self) -> tuple[int, ...]:
        return tuple(answer.status for answer in self.answers)

    def __str__(self) -> str:
        end = "closed" if self.is_closed else "hanging" if self.is_hanging else "waiting"
        return " ".join([*map(str, self.statuses), end])


def is_well_formed(sent: bytes) -> bool:
    """Whether these are whole requests, one behind another, each of which RFC 9112 gives one meaning only.

    What servers may choose about (bare LF, empty lines in front, HTTP/1.2, chunk extensions, trailers, other transfer
    codings, absolute targets, repeated lengths, methods of others) is not well-formed here, and neither is what Tornado
    does not understand: lists of connection options. llhttp knows no tab behind a transfer coding.
    """
    at = 0
    while at < len(sent):
        head = _HEAD.match(sent, at)
        end = None if head is None else _end_of_request(head, sent)
        if end is None:
            return False
        at = end
    return bool(sent)


def in_plain_words(sent: bytes) -> bytes:
    """What was sent without what RFC 9112 lets a server overlook, or tells it to. The oracle is stricter in places: a
    front may answer these bytes as both answer them in plain words."""
    for pattern, plain in _OVERLOOKED:
        sent = pattern.sub(plain, sent)
    return sent


def why_worse(sent: bytes, oracle: Outcome, front: Outcome) -> str | None:
    """None when `front` answers `sent` like the oracle or more strictly, else what is wrong with it."""
    if any(status >= 500 for status in front.statuses):
        return "it fails"
    if front.is_hanging:
        return "it hangs"
    if not _keeps_its_word(front):
        return "it says that the connection ends, and it does not"
    if is_well_formed(sent):
        return _why_unequal(oracle, front)
    alike = _alike(oracle, front)
    rest = front.answers[alike:]
    if len(rest) > 1 or (rest and not _is_refusal(rest[0])):
        return "it answers what the oracle does not"
    if rest or alike < len(oracle.answers):
        # It refused, or cut: so nothing behind that place may be read.
        return None if front.is_closed or (rest and not oracle.is_closed) else "it leaves open what it did not answer"
    return "it keeps open what the oracle closes" if oracle.is_closed and not front.is_closed else None


def is_steady(sent: bytes, whole: Outcome, split: Outcome) -> bool:
    """Whether a front answered the same bytes alike in other pieces.

    Of two faults the one that is seen first may differ, so a refusal of what is malformed may name either.
    """
    if (whole.statuses, whole.is_closed, whole.is_hanging) != (split.statuses, split.is_closed, split.is_hanging):
        return False
    may_differ = not is_well_formed(sent)
    return all(
        shown(one) == shown(other) or (may_differ and _is_refusal(one))
        for one, other in zip(whole.answers, split.answers, strict=True)
    )


def shown(answer: Answer) -> Answer:
    """The answer without what differs each time: its date, an id made for it, positions and times to come back.

    Nor is `Connection: close` shown, which some fronts leave out: see `_keeps_its_word`.
    """
    said = [(name, value) for name, value in answer.headers if (name, value) != ("connection", "close")]
    return Answer(
        answer.status,
        tuple(sorted((name, "" if _varies(name, value, answer) else value) for name, value in said)),
        _VARYING.sub(rb"\1", answer.body),
        answer.is_whole,
    )


def _varies(name: str, value: str, answer: Answer) -> bool:
    if name == "x-request-id":
        return bool(_MADE_ID.fullmatch(value))
    return name == "date" or (name == "content-length" and answer.is_whole and answer.body != b"")


def _end_of_request(head: re.Match[bytes], sent: bytes) -> int | None:
    """Where a request ends whose head is well-formed as far as it goes; None when it is not, or not whole."""
    fields = [line.split(b":", 1) for line in head["fields"].split(b"\r\n")[:-1]]
    given = [
        (name.lower(), value.strip(b" " if name.lower() == b"transfer-encoding" else b" \t")) for name, value in fields
    ]
    hosts, lengths, codings = (
        [value for name, value in given if name == wanted]
        for wanted in (b"host", b"content-length", b"transfer-encoding")
    )
    options = [value for name, value in given if name == b"connection"]
    if len(options) > 1 or not all(map(_CONNECTION.fullmatch, options)):
        return None
    is_modern = head["minor"] == b"1"
    if len(hosts) > 1 or (is_modern and not hosts) or not all(re.fullmatch(_HOST, host) for host in hosts):
        return None
    if len(lengths) + len(codings) > 1 or (codings and not is_modern):
        return None
    if codings:
        return _end_of_chunks(sent, head.end()) if codings[0].lower() == b"chunked" else None
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return None
    end = head.end() + (int(lengths[0]) if lengths else 0)
    return end if end <= len(sent) else None


def _end_of_chunks(sent: bytes, at: int) -> int | None:
    while match := _CHUNKS.match(sent, at):
        at = match.end() + int(match["size"], 16)
        if sent[at : at + 2] != b"\r\n":
            return None
        at += 2
        if int(match["size"], 16) == 0:
            return at
    return None


def _why_unequal(oracle: Outcome, front: Outcome) -> str | None:
    """To requests that leave no choice. Only where the oracle cuts unasked a front may go on with the next one."""
    may_go_on = oracle.is_closed and not _was_asked_to_close(oracle)
    for number, (right, given) in enumerate(zip(map(shown, oracle.answers), map(shown, front.answers), strict=False)):
        if right != given and not (_is_bare(right) and _is_refusal(given)):
            return f"answer {number} to a well-formed request differs: {given} where {right} is right"
    if len(front.answers) < len(oracle.answers) or (len(front.answers) > len(oracle.answers) and not may_go_on):
        return "it answers well-formed requests more or less often"
    if front.is_closed != oracle.is_closed and not may_go_on:
        return "it keeps or closes the connection of well-formed requests differently"
    return None


def _keeps_its_word(front: Outcome) -> bool:
    """A stream says at its beginning that the connection ends with it: only answers of a known length are looked at."""
    measured = [answer for answer in front.answers if answer.header("content-length") is not None]
    farewells = [answer.header("connection") == "close" for answer in measured]
    return not any(farewells[:-1]) and (front.is_closed or not any(farewells))


def _is_bare(answer: Answer) -> bool:
    """What Tornado itself refuses, ahead of any application, it refuses in one line."""
    return answer.status == 400 and not answer.headers


def _was_asked_to_close(oracle: Outcome) -> bool:
    """Its last answer says that the connection ends, or is too old to say so."""
    return not oracle.answers or oracle.answers[-1].status < 400 or oracle.answers[-1].header("connection") == "close"


def _alike(oracle: Outcome, front: Outcome) -> int:
    """How many answers, from the first, are of the same class, and the same where they are no refusals."""
    count = 0
    for right, given in zip(oracle.answers, front.answers, strict=False):
        is_same = _is_refusal(given) if _is_refusal(right) else shown(right) == shown(given)
        if not is_same:
            break
        count += 1
    return count


def _is_refusal(answer: Answer) -> bool:
    return 400 <= answer.status < 500
