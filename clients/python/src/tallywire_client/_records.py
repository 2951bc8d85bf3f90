r"""The outbox's records and bytes, both ways, pure.

A file is lines, each `<crc32 of the rest, 8 hex digits> <kind> <fields>\n`. The kinds:

    =  version boot                       begins a file: the boot of the machine that wrote it
    +  seq wall batch                     a batch was handed over, at this second of the wall clock
    >  seq wall uptime boot               all batches up to this one may have been sent from now on
    <  seq                                nothing of that attempt has arrived
    -  seq                                all batches up to this one are settled

A process that is killed leaves its last line torn. A line that does not match its sum is passed over; the next one
stands for itself.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

VERSION = 1


@dataclass(frozen=True, slots=True)
class Moment:
    """A time that other processes, and a machine that was started again, can measure from."""

    wall: float
    uptime: float
    boot: str

    def seconds_since(self, earlier: "Moment") -> float:
        """From then to now. By the wall clock where the machine was started again in between; a wall clock that was
        set back since tells nothing, so that as good as for ever has passed."""
        if self.boot and self.boot == earlier.boot:
            return max(0.0, self.uptime - earlier.uptime)
        passed = self.wall - earlier.wall
        return passed if passed >= 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Begun:
    """The first record of a file."""

    version: int
    boot: str


@dataclass(frozen=True, slots=True)
class Handed:
    """A batch, as the line that is sent."""

    seq: int
    wall: float
    line: bytes


@dataclass(frozen=True, slots=True)
class Attempted:
    """Batches up to `upto` may have arrived since."""

    upto: int
    at: Moment


@dataclass(frozen=True, slots=True)
class Revoked:
    """The last attempt, up to `upto`, did not arrive."""

    upto: int


@dataclass(frozen=True, slots=True)
class Settled:
    """Batches up to `upto` are done with."""

    upto: int


Record = Begun | Handed | Attempted | Revoked | Settled


def encode(record: Record) -> bytes:
    """The line of a record."""
    match record:
        case Begun(version, boot):
            body = b"= %d %s" % (version, boot.encode() or b"?")
        case Handed(seq, wall, line):
            body = b"+ %d %d %s" % (seq, wall, line)
        case Attempted(upto, at):
            body = b"> %d %.3f %.3f %s" % (upto, at.wall, at.uptime, at.boot.encode() or b"?")
        case Revoked(upto):
            body = b"< %d" % upto
        case Settled(upto):
            body = b"- %d" % upto
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(line: bytes) -> Record | None:
    """The record of a line without its end; None when it is torn or damaged."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]) or line[8:9] != b" ":
            return None
        kind, fields = line[9:10], line[11:]
        match kind:
            case b"=":
                version, boot = fields.split(b" ")
                return Begun(int(version), _boot(boot))
            case b"+":
                seq, wall, batch = fields.split(b" ", 2)
                return Handed(int(seq), float(wall), batch)
            case b">":
                upto, wall, uptime, boot = fields.split(b" ")
                return Attempted(int(upto), Moment(float(wall), float(uptime), _boot(boot)))
            case b"<":
                return Revoked(int(fields))
            case b"-":
                return Settled(int(fields))
    except ValueError:
        pass
    return None


def decode_all(content: bytes) -> Iterator[tuple[Record, int]]:
    """The whole records of a file, each with the place where the next line begins."""
    start = 0
    while (end := content.find(b"\n", start)) >= 0:
        record = decode(content[start:end])
        start = end + 1
        if record is not None:
            yield record, start


def _boot(text: bytes) -> str:
    return "" if text == b"?" else text.decode()
