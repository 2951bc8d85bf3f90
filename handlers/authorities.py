"""From settings to who says who reads: the keys read, and whatever is weak or missing refused at the start."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from core.addresses import parse_networks
from core.auth import ALGORITHMS, KeyProblem, TokenRules, VerificationKey, keys_of_file
from core.settings import Settings, SettingsError
from handlers.credentials import Anybody, Authority, ProxyAuthority, TokenAuthority
from handlers.jwks import PublishedKeys, fetch

_ORIGIN = re.compile(r"https?://([A-Za-z0-9.\-_]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")
_HTTP_HERE = re.compile(r"http://(localhost|127\.0\.0\.1|\[::1\])[:/]")


def published_keys(settings: Settings, clock: Callable[[], float]) -> PublishedKeys | None:
    """The keys behind the URL that the settings name. Raises SettingsError."""
    url = settings.jwt_jwks_url
    if settings.auth != "jwt" or not url:
        return None
    if not url.startswith("https://") and _HTTP_HERE.match(url) is None:
        raise SettingsError(f"jwt_jwks_url is {url!r}: whoever can change the answer can let anybody in. Use https.")
    return PublishedKeys(url, fetch, clock)


def authority_of(settings: Settings, published: PublishedKeys | None) -> Authority:
    """Who says who reads. Raises SettingsError, naming the setting and the fix."""
    _check_origins(settings.cors_origins)
    if settings.auth == "none":
        return Anybody()
    if settings.auth == "proxy":
        if not settings.proxy_addresses:
            raise SettingsError("auth is proxy, and nobody is believed: name the proxies with --proxy-addresses.")
        proxies = parse_networks(settings.proxy_addresses)
        return ProxyAuthority(proxies, settings.proxy_user_header, settings.proxy_strategies_header)
    if not settings.jwt_keys and published is None:
        raise SettingsError("auth is jwt, and there is no key: name one with --jwt-keys or --jwt-jwks-url.")
    rules = TokenRules(
        settings.jwt_audience or None,
        settings.jwt_issuer or None,
        settings.jwt_leeway_seconds,
        settings.jwt_max_life_seconds,
        settings.jwt_user_claim,
        settings.jwt_strategies_claim,
    )
    return TokenAuthority([key for text in settings.jwt_keys for key in _keys(text)], published, rules)


def _keys(text: str) -> list[VerificationKey]:
    """Of one entry of `jwt_keys`."""
    algorithm, equals, file = text.partition("=")
    if not equals or algorithm not in ALGORITHMS:
        raise SettingsError(
            f"jwt_keys has {text!r}: write ALGORITHM=FILE, the algorithm one of {', '.join(ALGORITHMS)}."
        )
    try:
        return keys_of_file(algorithm, Path(file).read_bytes())
    except (OSError, KeyProblem) as error:
        raise SettingsError(f"the key {file} for {algorithm} cannot be used: {error}.") from error


def _check_origins(origins: Iterable[str]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"cors_origins has {origin!r}: write an origin as browsers do, for example https://app.example.com, "
                "without a path, and none of them with *."
            )
