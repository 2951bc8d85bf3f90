"""Tokens to principals, pure: who reads, what, and until when (RFC 7519, RFC 8725). The time is passed in.

A key says which algorithm it is for; what a token says about that only has to agree. Nothing in a token leads to a key
but its `kid`, and nothing in it is believed before its signature has been checked.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, get_args

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms
from msgspec import UNSET, Struct, UnsetType

from core.errors import Unauthorized
from core.models import MAX_ID
from core.principal import Principal

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
ALGORITHMS = get_args(Algorithm)

MAX_TOKEN_BYTES = 4096
"""As much as a browser keeps of a cookie."""

MAX_STRATEGIES = 500
"""Strategies that a token may name: about as many as it has room for."""

MAX_KEYS = 64
MAX_TRIES = 8
"""Keys of one algorithm that a token without a name of its key is tried with."""

MIN_SECRET_BYTES = 32
"""RFC 7518, section 3.2: as long as the hash."""

MIN_RSA_BITS = 2048
"""RFC 7518, section 3.3."""

MAX_LEEWAY_SECONDS = 30

_TOKEN = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_USER = re.compile(r"[1-9][0-9]{0,15}")
_signatures = {name: get_default_algorithms()[name] for name in ALGORITHMS}


class KeyProblem(Exception):
    """A key cannot be used; the message says why and never what is in it."""


class TokenRules(Struct, frozen=True):
    """What a token must say. `audience` and `issuer` None: they are not asked for."""

    audience: str | None
    issuer: str | None
    leeway_seconds: float
    max_life_seconds: float
    user_claim: str
    strategies_claim: str


class VerificationKey(Struct, frozen=True):
    """A key, ready to verify with, and the only algorithm that it verifies. `kid` None: it has no name."""

    algorithm: str
    kid: str | None
    key: object


class _Header(Struct, frozen=True):
    alg: str
    kid: str | None = None
    crit: object = UNSET


class _Claims(Struct, frozen=True):
    """Those that are the same in every token."""

    exp: float
    iat: float
    nbf: float | UnsetType = UNSET
    aud: str | tuple[str, ...] | UnsetType = UNSET
    iss: str | UnsetType = UNSET


_header = msgspec.json.Decoder(_Header).decode
_claims = msgspec.json.Decoder(_Claims).decode
_object = msgspec.json.Decoder(dict[str, object]).decode


def verify(token: str, keys: Iterable[VerificationKey], rules: TokenRules, now: float) -> Principal:
    """Who has been given this token. `now` in Unix seconds. Raises Unauthorized, never saying what is in the token."""
    if len(token) > MAX_TOKEN_BYTES:
        raise Unauthorized(f"The token is longer than {MAX_TOKEN_BYTES} bytes.")
    if _TOKEN.fullmatch(token) is None:
        raise Unauthorized("The token is not a signed JWT.")
    payload = _signed_payload(token, keys)
    try:
        claims, every = _claims(payload), _object(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Unauthorized("The token needs the claims exp and iat, as numbers.") from error
    _check_times(claims, rules, now)
    _check_names(claims, rules)
    return Principal(
        _user_of(every, rules.user_claim), _strategies_of(every, rules.strategies_claim), claims.iat, claims.exp
    )


def _signed_payload(token: str, keys: Iterable[VerificationKey]) -> bytes:
    head, _, rest = token.partition(".")
    try:
        header = _header(jwt.utils.base64url_decode(head))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Unauthorized("The header of the token cannot be read.") from error
    if header.crit is not UNSET:
        raise Unauthorized("The token demands extensions that are not known here.")
    fitting = [key for key in keys if key.algorithm == header.alg and header.kid in (None, key.kid)]
    fitting += [key for key in keys if key.algorithm == header.alg and header.kid is not None and key.kid is None]
    if not fitting:
        raise Unauthorized("The token is signed with a key or an algorithm that is not known here.", knows_key=False)
    signed, _, signature = token.rpartition(".")
    try:
        signature_bytes = jwt.utils.base64url_decode(signature)
        payload = jwt.utils.base64url_decode(rest.partition(".")[0])
    except ValueError as error:
        raise Unauthorized("The token cannot be read.") from error
    if not any(_verifies(key, signed.encode(), signature_bytes) for key in fitting[:MAX_TRIES]):
        # A name that no key has may be that of one which is not here yet.
        is_named_here = header.kid is None or any(key.kid == header.kid for key in fitting)
        raise Unauthorized("The signature of the token is not valid.", knows_key=is_named_here)
    return payload


def _verifies(key: VerificationKey, signed: bytes, signature: bytes) -> bool:
    return bool(_signatures[key.algorithm].verify(signed, key.key, signature))


def _check_times(claims: _Claims, rules: TokenRules, now: float) -> None:
    leeway = rules.leeway_seconds
    # No leeway here: a stream ends at `exp`, so none may begin behind it. Turned round, so that a time that is not a
    # number is none.
    if not claims.exp > now:
        raise Unauthorized("The token has expired.")
    if not claims.iat <= now + leeway or (claims.nbf is not UNSET and not claims.nbf <= now + leeway):
        raise Unauthorized("The token is not valid yet.")
    if not 0 < claims.exp - claims.iat <= rules.max_life_seconds:
        raise Unauthorized(f"The token is valid for longer than the {rules.max_life_seconds:.0f} s allowed here.")


def _check_names(claims: _Claims, rules: TokenRules) -> None:
    audience = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
    if rules.audience is not None and (audience is UNSET or rules.audience not in audience):
        raise Unauthorized("The token is meant for another audience.")
    if rules.issuer is not None and claims.iss != rules.issuer:
        raise Unauthorized("The token comes from another issuer.")


def _user_of(claims: Mapping[str, object], name: str) -> int:
    user = claims.get(name)
    if not isinstance(user, str) or _USER.fullmatch(user) is None or int(user) > MAX_ID:
        raise Unauthorized(f"The claim {name} of the token must be a user id in decimal, as a string.")
    return int(user)


def _strategies_of(claims: Mapping[str, object], name: str) -> frozenset[int] | None:
    strategies = claims.get(name)
    if strategies == "*":
        return None
    if isinstance(strategies, list) and len(strategies) <= MAX_STRATEGIES and all(map(_is_id, strategies)):
        return frozenset(strategies)
    raise Unauthorized(f'The claim {name} of the token must be a list of at most {MAX_STRATEGIES} ids, or "*".')


def _is_id(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_ID


# ---- keys


def keys_of_file(algorithm: str, content: bytes) -> list[VerificationKey]:
    """The keys in a file that an operator names: a secret for HS256, else a public key as PEM, or a JWK set.

    Raises KeyProblem.
    """
    if content.lstrip().startswith(b"{"):
        keys = [key for key in keys_of_set(content, allows_secrets=True) if key.algorithm == algorithm]
        if not keys:
            raise KeyProblem(f"there is no key for {algorithm} in the set")
        return keys
    if algorithm == "HS256":
        return [_secret(content.strip(b"\r\n"), None)]
    try:
        key = load_pem_public_key(content)
    except (ValueError, TypeError) as error:
        raise KeyProblem("it is neither a public key as PEM nor a JWK set") from error
    return [_public(algorithm, key, None)]


def keys_of_set(content: bytes, *, allows_secrets: bool = False) -> list[VerificationKey]:
    """The signing keys of a JWK set (RFC 7517); those of kinds that are not used here are left out.

    Raises KeyProblem when it is no set, has too many, or one of them is weak.
    """
    try:
        entries = json.loads(content)["keys"]
        found = list(_keys_of_entries(entries, allows_secrets))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise KeyProblem("it is not a JWK set") from error
    if len(found) > MAX_KEYS:
        raise KeyProblem(f"there are more than {MAX_KEYS} keys in the set")
    return found


def _keys_of_entries(entries: Iterable[Mapping[str, object]], allows_secrets: bool) -> Iterator[VerificationKey]:
    for entry in entries:
        algorithm = _algorithm_of(entry)
        kid = entry.get("kid")
        if algorithm is None or entry.get("use", "sig") != "sig" or not isinstance(kid, str | None):
            continue
        if algorithm == "HS256" and not allows_secrets:
            raise KeyProblem("a secret is published in the set")
        try:
            key = _signatures[algorithm].from_jwk(dict(entry))
        except (jwt.exceptions.InvalidKeyError, ValueError, TypeError) as error:
            raise KeyProblem(f"a key for {algorithm} cannot be read") from error
        yield _secret(key, kid) if algorithm == "HS256" else _public(algorithm, key, kid)


def _algorithm_of(entry: Mapping[str, object]) -> str | None:
    """The algorithm of a JWK: the one it states, else the one its kind stands for. None: not one of ours."""
    kind = {
        ("oct", None): "HS256",
        ("RSA", None): "RS256",
        ("EC", "P-256"): "ES256",
        ("OKP", "Ed25519"): "EdDSA",
    }.get((str(entry.get("kty")), None if entry.get("crv") is None else str(entry.get("crv"))))
    return kind if entry.get("alg", kind) == kind else None


def _secret(secret: bytes, kid: str | None) -> VerificationKey:
    if len(secret) < MIN_SECRET_BYTES:
        raise KeyProblem(f"a secret for HS256 must have at least {MIN_SECRET_BYTES} bytes")
    if len(set(secret)) < MIN_SECRET_BYTES // 4:
        raise KeyProblem("a secret for HS256 must be random")
    if secret.lstrip().startswith(b"-----BEGIN"):
        raise KeyProblem("a key as PEM is no secret: whoever knows a public one could sign with it")
    return VerificationKey("HS256", kid, secret)


def _public(algorithm: str, key: object, kid: str | None) -> VerificationKey:
    match algorithm, key:
        case "RS256", rsa.RSAPublicKey():
            if key.key_size < MIN_RSA_BITS:
                raise KeyProblem(f"an RSA key must have at least {MIN_RSA_BITS} bits")
        case "ES256", ec.EllipticCurvePublicKey():
            if not isinstance(key.curve, ec.SECP256R1):
                raise KeyProblem("a key for ES256 must be on the curve P-256")
        case "EdDSA", ed25519.Ed25519PublicKey():
            pass
        case _:
            raise KeyProblem(f"it is not a public key for {algorithm}")
    return VerificationKey(algorithm, kid, key)
