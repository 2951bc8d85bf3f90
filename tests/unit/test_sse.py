"""Event blocks to bytes and back, whole and byte by byte."""

import json
import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.models import (
    ControlEvent,
    OrderBatchUpdate,
    Shape,
    StrategyTotals,
    StreamClosing,
    StreamHeartbeat,
    StreamInfo,
    StreamOpen,
    StreamReset,
    Summary,
    UpdateData,
    iso_timestamp,
)
from core.sse import (
    COMMENT_HEARTBEAT,
    LAST_CHUNK,
    EventParser,
    ServerSentEvent,
    chunk,
    encode_catch_up,
    encode_control,
    encode_event,
    encode_update,
)

EPOCH = "1k7q2m9x4v0ce"


def position(n: int) -> str:
    return f"{EPOCH}-{n}"


def update(strategy_id: int = 3, after: int = 41, **more: tuple[Summary, ...]) -> OrderBatchUpdate:
    """The example of the design."""
    summaries = (Summary("LIMIT", 5, 3), Summary("STOP_LIMIT", 2, 0))
    return OrderBatchUpdate(
        UpdateData(summaries, "2025-10-30T12:34:56.789Z"), StreamInfo(strategy_id, position(after), 1, **more)
    )


def parsed(pieces: Iterable[bytes], parser: EventParser | None = None) -> list[ServerSentEvent]:
    parser = parser or EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def single_bytes(data: bytes) -> Iterator[bytes]:
    return (data[index : index + 1] for index in range(len(data)))


# ---- exact bytes


def test_an_update_is_the_example_of_the_design_byte_for_byte() -> None:
    assert encode_update(update(), "envelope", position(42)) == (
        b"event: order_batch_update\n"
        b'data: {"type":"order_batch_update","data":{"summaries":[{"order_type":"LIMIT","created":5,"cancelled":3},'
        b'{"order_type":"STOP_LIMIT","created":2,"cancelled":0}],"timestamp":"2025-10-30T12:34:56.789Z"},'
        b'"stream":{"strategy_id":3,"after":"1k7q2m9x4v0ce-41","batches":1}}\n'
        b"id: 1k7q2m9x4v0ce-42\n"
        b"\n"
    )


def test_a_flat_update_has_only_the_inner_object_on_its_data_line() -> None:
    assert encode_update(update(), "flat", position(42)) == (
        b"event: order_batch_update\n"
        b'data: {"summaries":[{"order_type":"LIMIT","created":5,"cancelled":3},'
        b'{"order_type":"STOP_LIMIT","created":2,"cancelled":0}],"timestamp":"2025-10-30T12:34:56.789Z",'
        b'"stream":{"strategy_id":3,"after":"1k7q2m9x4v0ce-41","batches":1}}\n'
        b"id: 1k7q2m9x4v0ce-42\n"
        b"\n"
    )


@pytest.mark.parametrize("shape", ["envelope", "flat"])
def test_totals_stand_last_in_the_stream_part_and_only_when_there_are_any(shape: Shape) -> None:
    with_totals = encode_update(update(totals=(Summary("LIMIT", 9, 9),)), shape, position(42))
    without = encode_update(update(), shape, position(42))

    totals = b',"totals":[{"order_type":"LIMIT","created":9,"cancelled":9}]'
    assert with_totals == without.replace(b'"batches":1', b'"batches":1' + totals)


@pytest.mark.parametrize("shape", ["envelope", "flat"])
def test_a_catch_up_carries_each_update_exactly_as_on_its_own_data_line(shape: Shape) -> None:
    updates = (update(3), update(4))
    data_lines = [encode_update(each, shape, position(42)).split(b"\n")[1].removeprefix(b"data: ") for each in updates]
    data = b'"updates":[%s],"after":"1k7q2m9x4v0ce-41"}' % b",".join(data_lines)

    assert encode_catch_up(updates, position(41), shape, position(42)) == (
        b"event: order_batch_catch_up\n"
        + (b'data: {"type":"order_batch_catch_up",' if shape == "envelope" else b"data: {")
        + data
        + b"\nid: 1k7q2m9x4v0ce-42\n\n"
    )


TOTALS = (StrategyTotals(3, (Summary("LIMIT", 1, 0),)),)
TOTALS_TEXT = '"totals":[{"strategy_id":3,"summaries":[{"order_type":"LIMIT","created":1,"cancelled":0}]}]'


@pytest.mark.parametrize(
    ("control", "data"),
    [
        (
            StreamOpen("p", (3, 4), resumed=True, heartbeat_seconds=15),
            '{"position":"p","strategies":[3,4],"resumed":true,"heartbeat_seconds":15}',
        ),
        (
            StreamOpen("p", "*", resumed=False, heartbeat_seconds=2.5, totals=TOTALS),
            '{"position":"p","strategies":"*","resumed":false,"heartbeat_seconds":2.5,' + TOTALS_TEXT + "}",
        ),
        (
            StreamReset("trimmed", "p", (3,), 15, TOTALS),
            '{"reason":"trimmed","position":"p","strategies":[3],"heartbeat_seconds":15,' + TOTALS_TEXT + "}",
        ),
        (StreamHeartbeat("p", "t"), '{"position":"p","timestamp":"t"}'),
        (StreamClosing("draining", reconnect=True), '{"reason":"draining","reconnect":true}'),
    ],
    ids=lambda value: value.event if not isinstance(value, str) else "",
)
def test_a_control_event_is_its_type_and_its_data_or_flat_its_data_alone(control: ControlEvent, data: str) -> None:
    name = control.event

    assert encode_control(control, "envelope").decode() == (
        f'event: {name}\ndata: {{"type":"{name}","data":{data}}}\n\n'
    )
    assert encode_control(control, "flat", event_id="p", retry_ms=7).decode() == (
        f"event: {name}\nretry: 7\ndata: {data}\nid: p\n\n"
    )


@pytest.mark.parametrize(
    ("unix_ms", "text"),
    [
        (1761827696789, "2025-10-30T12:34:56.789Z"),
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (999, "1970-01-01T00:00:00.999Z"),
        (1761827696000, "2025-10-30T12:34:56.000Z"),
        (4102444799999, "2099-12-31T23:59:59.999Z"),
    ],
)
def test_a_timestamp_is_utc_with_milliseconds(unix_ms: int, text: str) -> None:
    assert iso_timestamp(unix_ms) == text


# ---- framing


NAMES = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)
IDS = st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True))
RETRIES = st.one_of(st.none(), st.integers(0, 10**9))
JSON_VALUES = st.one_of(st.text(), st.dictionaries(st.text(max_size=5), st.one_of(st.text(), st.integers())))
EVENTS = st.tuples(NAMES, JSON_VALUES.map(lambda value: json.dumps(value, ensure_ascii=False)), IDS, RETRIES)


def encoded(event: tuple[str, str, str | None, int | None]) -> bytes:
    name, data, event_id, retry_ms = event
    return encode_event(name, data.encode("utf-8", "replace"), event_id=event_id, retry_ms=retry_ms)


def split_at(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    start = 0
    for cut in sorted(cut % (len(data) + 1) for cut in cuts):
        yield data[start:cut]
        start = cut
    yield data[start:]


@given(st.lists(EVENTS, max_size=5), st.lists(st.integers(0, 10**6), max_size=8), st.booleans())
def test_events_read_back_as_they_were_written_in_pieces_of_any_size(
    events: list[tuple[str, str, str | None, int | None]], cuts: list[int], heartbeats: bool
) -> None:
    stream = (COMMENT_HEARTBEAT if heartbeats else b"").join(encoded(event) for event in events)
    expected, last_id, retry_ms = [], "", None
    for name, data, event_id, retry in events:
        last_id = last_id if event_id is None else event_id
        retry_ms = retry_ms if retry is None else retry
        expected.append(ServerSentEvent(name, data.encode("utf-8", "replace").decode(), last_id))

    for pieces in ([stream], single_bytes(stream), split_at(stream, cuts)):
        parser = EventParser()
        assert parsed(pieces, parser) == expected
        assert (parser.last_event_id, parser.retry_ms) == (last_id, retry_ms)
        assert parser.comments == (max(0, len(events) - 1) if heartbeats else 0)


@given(EVENTS)
def test_the_id_stands_last_and_the_retry_within_the_block(event: tuple[str, str, str | None, int | None]) -> None:
    block = encoded(event)

    assert block.endswith(b"\n\n")
    fields = [line.partition(b":")[0] for line in block[:-2].split(b"\n")]
    assert fields == [
        b"event",
        *([] if event[3] is None else [b"retry"]),
        b"data",
        *([] if event[2] is None else [b"id"]),
    ]


def test_the_comment_heartbeat_is_one_comment_and_dispatches_nothing() -> None:
    assert COMMENT_HEARTBEAT == b":\n"
    parser = EventParser(position(1))

    assert parsed([COMMENT_HEARTBEAT] * 3, parser) == []
    assert (parser.comments, parser.last_event_id) == (3, position(1))


def test_a_stream_cut_at_any_byte_leaves_the_id_of_the_last_complete_block() -> None:
    blocks = [
        encode_control(
            StreamOpen(position(1), (3,), resumed=False, heartbeat_seconds=15),
            "envelope",
            event_id=position(1),
            retry_ms=2000,
        ),
        COMMENT_HEARTBEAT,
        encode_update(update(after=1), "envelope", position(2)),
        encode_control(StreamHeartbeat(position(2), iso_timestamp(0)), "envelope"),
        encode_update(update(after=2), "envelope", position(31)),
        encode_control(StreamClosing("draining", reconnect=True), "envelope", retry_ms=3000),
    ]
    stream = b"".join(blocks)
    ends = {
        len(b"".join(blocks[:1])): position(1),
        len(b"".join(blocks[:3])): position(2),
        len(b"".join(blocks[:5])): position(31),
    }
    known, byte_by_byte = position(0), EventParser(position(0))

    for cut in range(len(stream) + 1):
        known = ends.get(cut, known)
        byte_by_byte.feed(stream[cut - 1 : cut])
        whole = EventParser(position(0))
        events = whole.feed(stream[:cut])
        assert byte_by_byte.last_event_id == whole.last_event_id == known
        assert [event.last_event_id for event in events][-1:] in ([], [known])


# ---- reading, as the standard says


@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"], ids=["LF", "CR", "CRLF"])
def test_every_line_end_of_the_standard_is_read_whole_and_byte_by_byte(line_end: str) -> None:
    lines = ["event: one", "data: a", "id: 1", "", ": comment", "data: b", "data: c", "", "data: d", ""]
    stream = "".join(line + line_end for line in lines).encode()

    expected = [
        ServerSentEvent("one", "a", "1"),
        ServerSentEvent("message", "b\nc", "1"),
        ServerSentEvent("message", "d", "1"),
    ]
    assert parsed([stream]) == expected
    assert parsed(single_bytes(stream)) == expected
    for cut in range(len(stream)):
        assert parsed([stream[:cut], b"", stream[cut:]]) == expected


def test_line_ends_may_be_mixed() -> None:
    assert parsed([b"data: a\r\rdata: b\r\n\ndata: c\n\r"]) == [
        ServerSentEvent("message", "a", ""),
        ServerSentEvent("message", "b", ""),
        ServerSentEvent("message", "c", ""),
    ]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\n", [("message", "a", "")], id="the default name"),
        pytest.param(b"event:\ndata: a\n\n", [("message", "a", "")], id="an empty name is the default one"),
        pytest.param(b"event: x\n\ndata: a\n\n", [("message", "a", "")], id="a name ends with its block"),
        pytest.param(b"event: x\nevent: y\ndata: a\n\n", [("y", "a", "")], id="the last name of a block"),
        pytest.param(b"data:a\n\n", [("message", "a", "")], id="no space"),
        pytest.param(b"data:  a \n\n", [("message", " a ", "")], id="one space only"),
        pytest.param(b"data: a: b\n\n", [("message", "a: b", "")], id="the first colon"),
        pytest.param(b"data\n\n", [("message", "", "")], id="a field without a colon"),
        pytest.param(b"data:\ndata:\n\n", [("message", "\n", "")], id="two empty data lines"),
        pytest.param(b"data: a\ndata: b\n\n", [("message", "a\nb", "")], id="several data lines"),
        pytest.param(b"id: 1\n\n", [], id="no data, no event"),
        pytest.param(b"id: 1\n\ndata: a\n\n", [("message", "a", "1")], id="an id without data is in force"),
        pytest.param(b"id: 1\ndata: a\n\nid\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "")], id="no id"),
        pytest.param(b"id: 1\nid: a\0b\ndata: a\n\n", [("message", "a", "1")], id="an id with NUL is not one"),
        pytest.param(b"id: 1\nid: \0\ndata: a\n\n", [("message", "a", "1")], id="NUL alone"),
        pytest.param(b"Data: a\n data: b\ndatum: c\n\n", [], id="other fields"),
        pytest.param(b"data: a", [], id="an unfinished line"),
        pytest.param(b"data: a\n", [], id="an unfinished block"),
        pytest.param(b"\n\n\n", [], id="blank lines"),
        pytest.param("data: \u2028\x85\x0b\n\n".encode(), [("message", "\u2028\x85\x0b", "")], id="no other line ends"),
        pytest.param(b"data: \xff\xc3\n\n", [("message", "\ufffd\ufffd", "")], id="not UTF-8"),
        pytest.param("data: 📦é\n\n".encode(), [("message", "📦é", "")], id="characters of several bytes"),
        pytest.param(b"data: a\n\xef\xbb\xbfdata: b\n\n", [("message", "a", "")], id="a BOM in the middle"),
    ],
)
def test_blocks_are_read_as_a_browser_reads_them(stream: bytes, events: list[tuple[str, str, str]]) -> None:
    expected = [ServerSentEvent(*event) for event in events]

    assert parsed([stream]) == expected
    assert parsed(single_bytes(stream)) == expected


def test_a_block_of_an_id_alone_moves_the_position_and_dispatches_nothing() -> None:
    parser = EventParser(position(1))

    assert parser.feed(b"id: 1k7q2m9x4v0ce-2\n") == []
    assert parser.last_event_id == position(1)
    assert parser.feed(b"\n") == []
    assert parser.last_event_id == position(2)


def test_a_bom_at_the_start_is_not_part_of_the_first_line() -> None:
    stream = b"\xef\xbb\xbfdata: a\n\n"

    assert parsed([stream]) == [ServerSentEvent("message", "a", "")]
    assert parsed(single_bytes(stream)) == [ServerSentEvent("message", "a", "")]


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [
        (b"0", 0),
        (b"3000", 3000),
        (b"007", 7),
        (b"", 5),
        (b"-1", 5),
        (b"+1", 5),
        (b"1.5", 5),
        (b"1e3", 5),
        (b" 1", 5),
        (b"1 ", 5),
        (b"soon", 5),
        ("\u0661".encode(), 5),
        ("\u00b2".encode(), 5),
    ],
)
def test_a_retry_is_digits_only(value: bytes, retry_ms: int) -> None:
    parser = EventParser()

    assert parsed([b"retry: 5\nretry: " + value + b"\n"], parser) == []
    assert parser.retry_ms == retry_ms


def test_a_retry_of_any_length_is_read() -> None:
    parser = EventParser()

    assert parsed([b"retry: " + b"9" * 5000 + b"\ndata: a\n\n"], parser) == [ServerSentEvent("message", "a", "")]


def naively_parsed(stream: bytes) -> tuple[list[ServerSentEvent], str, int]:
    """WHATWG HTML, sections 9.2.5 and 9.2.6, to the letter, over a whole stream."""
    text = stream.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    events, data, event_type, id_buffer, last_event_id, comments = list[ServerSentEvent](), "", "", "", "", 0
    for line in text.split("\n")[:-1]:
        if line == "":
            last_event_id = id_buffer
            if data != "":
                events.append(ServerSentEvent(event_type or "message", data[:-1], last_event_id))
            data, event_type = "", ""
            continue
        if line[0] == ":":
            comments += 1
            continue
        field, _colon, value = line.partition(":")
        value = value[1:] if value[:1] == " " else value
        if field == "event":
            event_type = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
    return events, last_event_id, comments


LINES = st.sampled_from(
    [
        b"data: a",
        b"data",
        b"data:",
        b"event: x",
        b"event",
        b"id: 1",
        b"id",
        b"id: \0",
        b":",
        b": data: no",
        b"",
        b"",
        b"?",
    ]
)
LINE_ENDS = st.sampled_from([b"\n", b"\n", b"\r", b"\r\n"])
STREAMS = st.one_of(
    st.lists(st.tuples(LINES, LINE_ENDS).map(b"".join), max_size=12).map(b"".join),
    st.lists(st.sampled_from([b"data", b"id", b":", b" ", b"\r", b"\n", b"\0", b"\xc3", b"\xa9"]), max_size=20).map(
        b"".join
    ),
)


@given(STREAMS, st.lists(st.integers(0, 10**6), max_size=6))
@example(b"data: a\r", [])
@example(b"data: a\r\n\r\n", [8, 9])
def test_any_bytes_in_any_pieces_are_read_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    # What an incomplete character at the end will become is not known yet, and is no line either.
    expected = naively_parsed(stream)

    for pieces in ([stream], single_bytes(stream), split_at(stream, cuts)):
        parser = EventParser()
        assert (parsed(pieces, parser), parser.last_event_id, parser.comments) == expected


# ---- chunks


def unchunked(body: bytes) -> bytes:
    """RFC 9112, section 7.1, to the letter; what it cannot read is a failure."""
    payload = b""
    while True:
        match = re.match(rb"([0-9a-fA-F]+)\r\n", body)
        assert match is not None
        size, body = int(match[1], 16), body[match.end() :]
        payload, rest = payload + body[:size], body[size:]
        assert rest[:2] == b"\r\n"
        body = rest[2:]
        if size == 0:
            assert body == b""
            return payload


@given(st.lists(st.binary(min_size=1, max_size=600), max_size=5))
def test_chunks_read_back_as_the_payloads_they_carry(payloads: list[bytes]) -> None:
    assert unchunked(b"".join(map(chunk, payloads)) + LAST_CHUNK) == b"".join(payloads)


@pytest.mark.parametrize(
    ("payload", "framed"),
    [
        (b":\n", b"2\r\n:\n\r\n"),
        (b"x" * 15, b"f\r\n" + b"x" * 15 + b"\r\n"),
        (b"x" * 16, b"10\r\n" + b"x" * 16 + b"\r\n"),
        (b"0\r\n\r\n", b"5\r\n0\r\n\r\n\r\n"),
    ],
)
def test_a_chunk_is_its_length_in_hex_and_its_payload(payload: bytes, framed: bytes) -> None:
    assert chunk(payload) == framed
