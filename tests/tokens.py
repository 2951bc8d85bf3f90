"""Tokens and keys of tests: sound ones, and whatever somebody might try instead."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import cache

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

SECRET = b"k7Yq2mX9x4V0ceTzR1uWb8NfGh3sLdPa"
OTHER_SECRET = b"another secret of thirty-two byte"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


@cache
def private_key(algorithm: str, number: int = 0) -> PrivateKey:  # another number, another key
    """A private key for an algorithm, the same each time."""
    match algorithm:
        case "RS256":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: PrivateKey) -> bytes:
    """The public half, as PEM."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKey) -> bytes:
    """The private half, as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def claims(now: float, **changed: object) -> dict[str, object]:
    """Claims that are in order, but for those that are changed; None takes one away."""
    usual: dict[str, object] = {"iat": int(now) - 1, "exp": int(now) + 600, "sub": "7", "strategies": [3, 5]}
    return {name: value for name, value in (usual | changed).items() if value is not None}


def token(payload: Mapping[str, object], algorithm: str = "HS256", kid: str | None = None) -> str:
    """A sound token of the keys above."""
    key = SECRET if algorithm == "HS256" else private_key(algorithm)
    return jwt.encode(dict(payload), key, algorithm, {"kid": kid} if kid else None)


def encoded(data: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: object, payload: object, secret: bytes = SECRET) -> str:
    """Any header and any payload, signed with a secret by HMAC: as bytes, or else as JSON."""
    parts = [encoded(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)]
    signed = ".".join(parts)
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"
