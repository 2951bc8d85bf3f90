"""`tallywire token`: a token of a reader, for development and for tests of a deployment."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core import settings as known_settings
from core.commands.endings import CommandFailed, ExitCode
from core.commands.options import config_option
from core.commands.terminal import say

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    PrivateKey = bytes | RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

SECRET_VARIABLE = "TALLYWIRE_JWT_SECRET"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"([1-9][0-9]{0,6})([smhd])")


@click.command("token")
@click.option("--user", type=click.IntRange(1, 2**53 - 1), required=True, help="Who reads.")
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    type=click.IntRange(1, 2**53 - 1),
    help="What may be read; may be repeated. Default: every one.",
)
@click.option(
    "--expires", default="1h", metavar="SPAN", show_default=True, help="Until when it counts: 90s, 15m, 8h, 1d."
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The secret of HS256, or a private key as PEM for the others.  [{SECRET_VARIABLE}: the secret]",
)
@config_option
def token(user: int, strategies: Sequence[int], expires: str, secret_file: Path | None, config: Path | None) -> None:
    """Make a token for a server with --auth=jwt, and print it.

    It has the claims that the settings of --config and the environment ask for: audience, issuer, names of claims.
    For development: whoever has the secret can read as anybody.
    """
    # Here: no other command needs what reads keys.
    import jwt

    span = _SPAN.fullmatch(expires)
    if span is None:
        raise click.BadParameter(f"{expires!r} is no span of time: write 90s, 15m, 8h or 1d", param_hint="--expires")
    settings = known_settings.load(known_settings.read_file(config), os.environ, {})
    seconds = int(span[1]) * SECONDS[span[2]]
    if seconds > settings.jwt_max_life_seconds:
        raise click.BadParameter(
            f"a token may live for {settings.jwt_max_life_seconds} s here (jwt_max_life_seconds)",
            param_hint="--expires",
        )
    now = int(time.time())
    claims: dict[str, object] = {
        settings.jwt_user_claim: str(user),
        settings.jwt_strategies_claim: sorted(set(strategies)) or "*",
        "iat": now,
        "exp": now + seconds,
    }
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    key, algorithm = _key(secret_file)
    say(jwt.encode(claims, key, algorithm))


def _key(file: Path | None) -> "tuple[PrivateKey, str]":
    """Raises CommandFailed, which says nothing of what is in it."""
    from core.auth import KeyProblem, keys_of_file

    where = SECRET_VARIABLE if file is None else str(file)
    content = os.environ.get(SECRET_VARIABLE, "").encode() if file is None else file.read_bytes()
    if not content:
        raise click.UsageError(f"there is no secret: name its file with --secret-file, or set {SECRET_VARIABLE}.")
    try:
        if content.lstrip().startswith(b"-----BEGIN"):
            return _private_key(content)
        keys_of_file("HS256", content)
    except KeyProblem as error:
        raise CommandFailed(f"{where} cannot be used: {error}.", ExitCode.FAILED) from error
    except (ValueError, TypeError) as error:
        raise CommandFailed(f"{where} cannot be read as a private key.", ExitCode.FAILED) from error
    return content.strip(b"\r\n"), "HS256"


def _private_key(content: bytes) -> "tuple[PrivateKey, str]":
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(content, None)
    match key:
        case rsa.RSAPrivateKey():
            return key, "RS256"
        case ec.EllipticCurvePrivateKey() if isinstance(key.curve, ec.SECP256R1):
            return key, "ES256"
        case ed25519.Ed25519PrivateKey():
            return key, "EdDSA"
    raise ValueError("a key of another kind")
