"""Tokens: those that count, and everything else."""

import json
import math
from collections.abc import Sequence

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import get_default_algorithms

from core.auth import (
    ALGORITHMS,
    MAX_STRATEGIES,
    MAX_TOKEN_BYTES,
    KeyProblem,
    TokenRules,
    VerificationKey,
    keys_of_file,
    keys_of_set,
    verify,
)
from core.errors import Forbidden, Unauthorized
from core.models import MAX_ID
from core.principal import Principal
from tests.tokens import OTHER_SECRET, SECRET, claims, encoded, forged, private_key, private_pem, public_pem, token

NOW = 1_800_000_000.0
RULES = TokenRules(None, None, 5, 86_400, "sub", "strategies")
NAMED = TokenRules("tallywire", "https://login.example.com", 5, 86_400, "sub", "strategies")
HS = {"alg": "HS256", "typ": "JWT"}


def keys(*algorithms: str) -> list[VerificationKey]:
    """The keys of these algorithms, as an operator names them in files."""
    return [
        key
        for algorithm in algorithms
        for key in keys_of_file(algorithm, SECRET if algorithm == "HS256" else public_pem(private_key(algorithm)))
    ]


ALL_KEYS = keys(*ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_sound_token_says_who_reads_what_and_until_when(algorithm: str) -> None:
    principal = verify(token(claims(NOW), algorithm), keys(algorithm), RULES, NOW)

    assert principal == Principal(7, frozenset({3, 5}), NOW - 1, NOW + 600)


@pytest.mark.parametrize(
    ("strategies", "readable"),
    [
        ("*", None),
        ([], frozenset()),
        ([MAX_ID], frozenset({MAX_ID})),
        (list(range(1, 501)), frozenset(range(1, 501))),
    ],
)
def test_strategies_are_a_list_or_every_one(strategies: object, readable: frozenset[int] | None) -> None:
    assert verify(token(claims(NOW, strategies=strategies)), ALL_KEYS, RULES, NOW).strategies == readable


def test_names_of_claims_are_settings() -> None:
    rules = TokenRules(None, None, 5, 86_400, "uid", "books")

    principal = verify(token(claims(NOW, sub="1", uid="9", strategies=None, books="*")), ALL_KEYS, rules, NOW)

    assert (principal.user_id, principal.strategies) == (9, None)


@pytest.mark.parametrize("audience", ["tallywire", ["other", "tallywire"]])
def test_audience_and_issuer_are_asked_for_where_they_are_configured(audience: object) -> None:
    named = token(claims(NOW, aud=audience, iss="https://login.example.com"))

    assert verify(named, ALL_KEYS, NAMED, NOW).user_id == 7
    assert verify(named, ALL_KEYS, RULES, NOW).user_id == 7


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({"iat": NOW + 5}, NOW),
        ({"nbf": NOW + 5}, NOW),
        ({"exp": NOW + 0.001}, NOW),
        ({"iat": NOW - 86_000, "exp": NOW + 400}, NOW),
    ],
    ids=["made by a clock that is ahead", "valid from a clock that is ahead", "just not over", "as long as allowed"],
)
def test_times_at_the_edge_count(changed: dict[str, object], at: float) -> None:
    assert verify(token(claims(NOW, **changed)), ALL_KEYS, RULES, at).user_id == 7


def _signed_with(payload: dict[str, object], header: dict[str, object], secret: bytes = SECRET) -> str:
    return forged(HS | header, payload, secret)


def _es256(signature: bytes) -> str:
    signed = f"{encoded(json.dumps({'alg': 'ES256'}).encode())}.{encoded(json.dumps(claims(NOW)).encode())}"
    return f"{signed}.{encoded(signature)}"


SOUND = token(claims(NOW))
HEAD, PAYLOAD, SIGNATURE = SOUND.split(".")
RS_PEM = public_pem(private_key("RS256"))

FORGED: dict[str, str] = {
    # What the header says.
    "no algorithm": _signed_with(claims(NOW), {"alg": None}),
    "the header without an algorithm": forged({"typ": "JWT"}, claims(NOW)),
    **{
        f"algorithm {name!r}": f"{encoded(json.dumps({'alg': name}).encode())}.{PAYLOAD}.{encoded(b'x')}"
        for name in ("none", "None", "NONE", "nOnE", "", "hs256", "HS384", "HS512", "PS256", "RS512", "ES384", "dir")
    },
    "algorithm none with no signature": f"{encoded(json.dumps({'alg': 'none'}).encode())}.{PAYLOAD}.",
    "the algorithm as a list": _signed_with(claims(NOW), {"alg": ["HS256"]}),
    "the public key taken for a secret": forged(HS, claims(NOW), RS_PEM),
    "the same without its last line break": forged(HS, claims(NOW), RS_PEM.strip()),
    "an empty secret": forged(HS, claims(NOW), b""),
    "a secret of zeros": forged(HS, claims(NOW), bytes(32)),
    "another secret": forged(HS, claims(NOW), OTHER_SECRET),
    "RS256 over a signature of HS256": forged({"alg": "RS256"}, claims(NOW)),
    "a key of its own": _signed_with(
        claims(NOW), {"jwk": {"kty": "oct", "k": encoded(OTHER_SECRET)}, "kid": "own"}, OTHER_SECRET
    ),
    "the URL of a key of its own": _signed_with(claims(NOW), {"jku": "http://127.0.0.1/keys"}, OTHER_SECRET),
    "a certificate of its own": _signed_with(claims(NOW), {"x5c": ["MIIB"]}, OTHER_SECRET),
    "a kid that is a path": _signed_with(claims(NOW), {"kid": "../../../dev/null"}, b""),
    "a kid that is SQL": _signed_with(claims(NOW), {"kid": "' UNION SELECT 'x"}, b"x"),
    "a kid that is a number": _signed_with(claims(NOW), {"kid": 1}),
    "an extension that must be known": _signed_with(claims(NOW), {"crit": ["exp"]}),
    "a payload that is not encoded": _signed_with(claims(NOW), {"crit": ["b64"], "b64": False}),
    "a header that is a list": forged([HS], claims(NOW)),
    "a header that is no JSON": forged(b"{alg:HS256}", claims(NOW)),
    "a header of nested lists": forged(b'{"alg":"HS256","x":' + b"[" * 1200 + b"]" * 1200 + b"}", claims(NOW)),
    # Signatures.
    "a signature with one bit changed": f"{HEAD}.{PAYLOAD}.{('B' if SIGNATURE[0] == 'A' else 'A') + SIGNATURE[1:]}",
    "half a signature": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:20]}",
    "the signature of another token": f"{HEAD}.{PAYLOAD}.{token(claims(NOW, sub='8')).split('.')[2]}",
    "another user's payload": f"{HEAD}.{token(claims(NOW, sub='8')).split('.')[1]}.{SIGNATURE}",
    "ES256 with zeros for a signature": _es256(bytes(64)),
    "ES256 with an empty signature of DER": _es256(bytes.fromhex("3006020100020100")),
    "signed by another key": jwt.encode(claims(NOW), private_key("RS256", 1), "RS256"),
    "signed by another key on the curve": jwt.encode(claims(NOW), private_key("ES256", 1), "ES256"),
    "signed by another key of EdDSA": jwt.encode(claims(NOW), private_key("EdDSA", 1), "EdDSA"),
    # Its form.
    "nothing": "",
    "dots": "..",
    "two parts": f"{HEAD}.{PAYLOAD}",
    "no signature": f"{HEAD}.{PAYLOAD}.",
    "four parts": f"{SOUND}.{SIGNATURE}",
    "five parts, as if encrypted": f"{SOUND}.{SIGNATURE}.{SIGNATURE}",
    "padding": f"{SOUND}=",
    "a line break": f"{SOUND}\n",
    "a space within": f"{HEAD}. {PAYLOAD}.{SIGNATURE}",
    "other letters": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-1]}\u017f",
    "one that is too long": token(claims(NOW, note="x" * MAX_TOKEN_BYTES)),
    # Its times.
    "without exp": token(claims(NOW, exp=None)),
    "exp as text": token(claims(NOW)).replace(PAYLOAD, "") or "",
    "exp in the past": token(claims(NOW, iat=NOW - 700, exp=NOW - 1)),
    "exp now": token(claims(NOW, exp=NOW)),
    "exp that is true": forged(HS, claims(NOW, exp=True)),
    "exp as a string": forged(HS, claims(NOW, exp=str(NOW + 600))),
    "exp that no number holds": forged(HS, b'{"iat":1799999999,"exp":1e999,"sub":"7","strategies":"*"}'),
    "exp that is not a number": forged(HS, b'{"iat":1799999999,"exp":NaN,"sub":"7","strategies":"*"}'),
    "exp far away": token(claims(NOW, exp=NOW + 86_401)),
    "without iat": token(claims(NOW, iat=None)),
    "iat in the future": token(claims(NOW, iat=NOW + 6)),
    "iat as a string": forged(HS, claims(NOW, iat="now")),
    "iat behind exp": token(claims(NOW, iat=NOW + 4, exp=NOW + 3)),
    "nbf in the future": token(claims(NOW, nbf=NOW + 6)),
    "nbf as a string": forged(HS, claims(NOW, nbf="x")),
    # Who and what.
    **{
        f"the user {user!r}": forged(HS, claims(NOW) | {"sub": user})
        for user in (
            None, 7, 7.0, True, "", "0", "-7", "+7", "07", " 7", "7 ", "7\n", "7.0", "1e1", "\uff17", "me", ["7"],
            str(MAX_ID + 1), "9" * 400,
        )
    },
    "without a user": token(claims(NOW, sub=None)),
    "without strategies": token(claims(NOW, strategies=None)),
    **{
        f"the strategies {str(strategies)[:20]}": forged(HS, claims(NOW) | {"strategies": strategies})
        for strategies in (
            None, 3, "3", "3,5", "**", "", [0], [-3], ["3"], [3.0], [True], [None], [[3]], [MAX_ID + 1], {"3": 5},
            list(range(1, MAX_STRATEGIES + 2)),
        )
    },
    "a payload that is a list": forged(HS, [claims(NOW)]),
    "a payload that is no JSON": forged(HS, b"sub=7"),
    "a payload that is empty": forged(HS, b""),
}  # fmt: skip


@pytest.mark.parametrize("made_up", FORGED.values(), ids=FORGED)
def test_nothing_else_counts(made_up: str) -> None:
    with pytest.raises(Unauthorized) as refused:
        verify(made_up, ALL_KEYS, RULES, NOW)

    assert not any(part and part in str(refused.value) for part in made_up.split("."))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aud": "tallywire"},
        {"iss": "https://login.example.com"},
        {"aud": "tallywire2", "iss": "https://login.example.com"},
        {"aud": [], "iss": "https://login.example.com"},
        {"aud": ["TALLYWIRE"], "iss": "https://login.example.com"},
        {"aud": "tallywire", "iss": "https://login.example.com/"},
    ],
)
def test_a_token_for_others_or_from_others_does_not_count(changed: dict[str, object]) -> None:
    with pytest.raises(Unauthorized):
        verify(token(claims(NOW, **changed)), ALL_KEYS, NAMED, NOW)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_verifies_its_own_algorithm_only(algorithm: str) -> None:
    others = keys(*(other for other in ALGORITHMS if other != algorithm))

    with pytest.raises(Unauthorized):
        verify(token(claims(NOW), algorithm), others, RULES, NOW)


@given(st.integers(0, len(SOUND) - 1), st.characters(min_codepoint=33, max_codepoint=126))
def test_no_changed_token_says_something_else(at: int, letter: str) -> None:
    changed = SOUND[:at] + letter + SOUND[at + 1 :]
    try:
        principal = verify(changed, ALL_KEYS, RULES, NOW)
    except Unauthorized:
        return
    # base64 has several ways to write the last bits of a signature.
    assert principal == verify(SOUND, ALL_KEYS, RULES, NOW)


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*"))
def test_whatever_comes_is_refused_in_words(text: str) -> None:
    with pytest.raises(Unauthorized):
        verify(text, ALL_KEYS, RULES, NOW)


def test_a_name_that_no_key_has_may_be_that_of_one_that_is_not_here_yet() -> None:
    signed_by_another = jwt.encode(claims(NOW), private_key("ES256", 1), "ES256", {"kid": "new"})
    for unknown, knows_key in ((signed_by_another, False), (token(claims(NOW, exp=NOW), "ES256"), True)):
        with pytest.raises(Unauthorized) as refused:
            verify(unknown, keys("ES256"), RULES, NOW)
        assert refused.value.knows_key is knows_key


# ---- what a principal may read


@pytest.mark.parametrize(
    ("strategies", "asked", "readable"),
    [
        (None, None, None),
        (None, (3, 9), (3, 9)),
        (frozenset({3, 5}), None, frozenset({3, 5})),
        (frozenset({3, 5}), (5,), (5,)),
    ],
)
def test_a_principal_reads_what_is_its_own(
    strategies: frozenset[int] | None, asked: tuple[int, ...] | None, readable: Sequence[int] | None
) -> None:
    assert Principal(7, strategies).readable(asked) == readable


def test_a_principal_reads_nothing_else() -> None:
    with pytest.raises(Forbidden, match="Strategy 4"):
        Principal(7, frozenset({3, 5})).readable((3, 4))


# ---- keys


def _set(*entries: dict[str, object]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def _jwk(algorithm: str, **more: object) -> dict[str, object]:
    key = private_key(algorithm).public_key()
    jwk: dict[str, object] = json.loads(get_default_algorithms()[algorithm].to_jwk(key))
    return jwk | more


def test_a_set_gives_its_signing_keys_by_name() -> None:
    found = keys_of_set(
        _set(
            _jwk("RS256", kid="a", use="sig"),
            _jwk("ES256", kid="b", alg="ES256"),
            _jwk("EdDSA", kid="c"),
            _jwk("RS256", kid="for encrypting", use="enc"),
            _jwk("RS256", kid="another algorithm", alg="RS512"),
            {"kty": "EC", "crv": "P-521", "kid": "another curve"},
            {"kty": "of tomorrow"},
        )
    )

    assert [(key.algorithm, key.kid) for key in found] == [("RS256", "a"), ("ES256", "b"), ("EdDSA", "c")]
    assert verify(token(claims(NOW), "ES256", kid="b"), found, RULES, NOW).user_id == 7
    with pytest.raises(Unauthorized):
        verify(token(claims(NOW), "ES256", kid="a"), found, RULES, NOW)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": 7}',
        b'{"keys": [7]}',
        b"<html>",
        _set({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        _set({"kty": "RSA", "n": "?", "e": 3}),
        _set({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}),
        _set({"kty": "oct", "k": encoded(SECRET)}),
        _set(json.loads(get_default_algorithms()["RS256"].to_jwk(private_key("RS256")))),
        _set(*[_jwk("EdDSA")] * 65),
    ],
    ids=[
        "nothing", "a list", "no keys", "a number", "numbers", "a page", "a short key", "no key", "no point",
        "a published secret", "a private key", "too many",
    ],
)  # fmt: skip
def test_a_set_that_is_none_or_is_weak_is_refused(content: bytes) -> None:
    with pytest.raises(KeyProblem):
        keys_of_set(content)


@pytest.mark.parametrize(
    ("algorithm", "content"),
    [
        ("HS256", b"short"),
        ("HS256", b"x" * 64),
        ("HS256", RS_PEM),
        ("RS256", SECRET),
        ("RS256", public_pem(private_key("ES256"))),
        ("ES256", RS_PEM),
        ("EdDSA", RS_PEM),
        ("RS256", private_pem(private_key("RS256"))),
        ("RS256", public_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))),
        ("ES256", public_pem(ec.generate_private_key(ec.SECP384R1()))),
        ("ES256", _set(_jwk("RS256"))),
    ],
)
def test_a_key_that_is_weak_or_of_another_kind_is_refused(algorithm: str, content: bytes) -> None:
    with pytest.raises(KeyProblem) as refused:
        keys_of_file(algorithm, content)

    assert SECRET.decode() not in str(refused.value)


def test_a_secret_may_stand_in_a_set_that_is_a_file() -> None:
    found = keys_of_file("HS256", _set({"kty": "oct", "k": encoded(SECRET), "kid": "s"}))

    assert verify(token(claims(NOW), kid="s"), found, RULES, NOW).expires_at == NOW + 600
    assert not math.isinf(NOW)
