"""Who may call the internal listener: keys, and which pages and names of this machine are its own. Pure.

A file of keys has one line a key: the caller's name, its roles, and the SHA-256 of its secret in hexadecimal::

    # name     roles        SHA-256 of the secret
    orders     emit         9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    operator   read,admin   60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752

Several lines may have one name: while a secret is replaced, the old one and the new one count. Whatever is said about a
file repeats nothing of it but numbers of lines: a secret may stand there in the place of its hash.
"""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from typing import Literal, get_args

from msgspec import Struct

Role = Literal["emit", "read", "admin"]
"""What a key allows. None includes another."""

ROLES: tuple[Role, ...] = get_args(Role)

LOCAL = "local"
"""The caller's name where nobody asks for one. A key of this name goes on with the idempotency keys from before."""

MAX_KEYS = 100
"""A call is compared with every key: 100 take some 15 us."""

_NAME = re.compile(r"[!-\"$-~][!-~]{0,63}")
"""No # in front: that would be a comment."""

_DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
_LOOPBACK_NAME = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]*)?", re.IGNORECASE)


class Key(Struct, frozen=True):
    """Whose it is, what it allows, and the SHA-256 of its secret."""

    caller: str
    roles: frozenset[Role]
    digest: bytes

    @property
    def line(self) -> str:
        """What stands for it in a file of keys."""
        return f"{self.caller} {','.join(role for role in ROLES if role in self.roles)} {self.digest.hex()}"


def key_of(caller: str, roles: Iterable[Role], secret: str) -> Key:
    """The key that this secret is. Raises ValueError for a name that is none."""
    return Key(_name(caller), frozenset(roles), _digest_of(secret))


class Keys(Struct, frozen=True):
    """The keys that count."""

    keys: tuple[Key, ...]

    @classmethod
    def parse(cls, text: str) -> "Keys":
        """The keys of a file. Raises ValueError, naming the line, what is wrong with it and what is right."""
        line_of: dict[bytes, int] = {}
        keys: list[Key] = []
        for number, line in _lines(text):
            try:
                key = _parse_line(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
            earlier = line_of.setdefault(key.digest, number)
            if earlier != number:
                raise ValueError(f"line {number}: its secret is that of line {earlier} already; make a new one")
            keys.append(key)
        if not keys:
            raise ValueError("there is no key in it; `tallywire internal-key NAME --role emit` makes one")
        if len(keys) > MAX_KEYS:
            raise ValueError(f"there are more than {MAX_KEYS} keys in it; remove those that nobody uses")
        return cls(tuple(keys))

    def find(self, secret: str) -> Key | None:
        """The key with this secret. It takes as long whichever it is, and when it is none."""
        digest = _digest_of(secret)
        found = None
        for key in self.keys:
            if compare_digest(key.digest, digest):
                found = key
        return found


@lru_cache(64)
def is_loopback_name(host: str) -> bool:
    """Whether this Host, with or without a port, can only mean the machine that the caller is on.

    Any other name may be one that a foreign page has let point here, so that a browser takes us for its origin (DNS
    rebinding).
    """
    return _LOOPBACK_NAME.fullmatch(host) is not None


def is_own_origin(origin: str, host: str | None) -> bool:
    """Whether a page of `origin` came from the very host and port that it calls. The scheme may be a proxy's."""
    return bool(host) and origin.partition("://")[2].lower() == (host or "").lower()


def bearer_token(authorization: str | None) -> str | None:
    """What an Authorization header carries by the scheme Bearer (RFC 6750, section 2.1), None without it."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip(" ") or None if scheme.lower() == "bearer" else None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line


def _parse_line(line: str) -> Key:
    words = line.split()
    if len(words) != 3:
        raise ValueError("a key is NAME ROLES SHA256, with commas and no blanks between roles")
    caller, roles, digest = words
    if not _DIGEST.fullmatch(digest):
        raise ValueError(
            "the third word is not the 64 hexadecimal digits of a SHA-256; `tallywire internal-key` prints such a line"
        )
    return Key(_name(caller), frozenset(map(_role, roles.split(","))), bytes.fromhex(digest))


def _name(caller: str) -> str:
    if not _NAME.fullmatch(caller):
        raise ValueError("a name is 1 to 64 printable ASCII characters, without blanks and with no # in front")
    return caller


def _role(word: str) -> Role:
    for role in ROLES:
        if word == role:
            return role
    raise ValueError(f"a role is one of {', '.join(ROLES)}; several are joined by commas")


def _digest_of(secret: str) -> bytes:
    # Headers are decoded as Latin-1, so these are the bytes that were sent.
    return sha256(secret.encode("latin-1", "replace")).digest()
