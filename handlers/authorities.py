"""From settings to who says who reads; whatever is weak or missing is refused at the start."""

import re
from collections.abc import Callable, Iterable

from core.addresses import parse_networks
from core.settings import Settings, SettingsError
from handlers.credentials import Anybody, Authority, ProxyAuthority

_ORIGIN = re.compile(r"https?://([a-z0-9.\-_]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_USUAL_PORT = re.compile(r"http://.*:80|https://.*:443")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")


def authority_of(settings: Settings, clock: Callable[[], float]) -> Authority:
    """Who says who reads. `clock` is monotonic seconds. Raises SettingsError, naming the setting and the fix."""
    _check_origins(settings.cors_origins)
    _check_that_all_counts(settings)
    if settings.auth == "none":
        return Anybody()
    if settings.auth == "proxy":
        if not settings.proxy_addresses:
            raise SettingsError("auth is proxy, and nobody is believed: name the proxies with --proxy-addresses.")
        for header in (settings.proxy_user_header, settings.proxy_strategies_header):
            if not _HEADER.fullmatch(header):
                raise SettingsError(f"{header!r} is no name of a header: write letters, digits and hyphens.")
        proxies = parse_networks(settings.proxy_addresses)
        return ProxyAuthority(proxies, settings.proxy_user_header, settings.proxy_strategies_header)
    from handlers.tokens import token_authority  # see there

    return token_authority(settings, clock)


def _check_that_all_counts(settings: Settings) -> None:
    """What looks like authentication and is none would let everybody in."""
    if settings.auth != "jwt" and (settings.jwt_keys or settings.jwt_jwks_url):
        raise SettingsError(
            f"there are keys for tokens, and auth is {settings.auth}, so nobody would be asked for one. Say "
            "--auth=jwt, or leave jwt_keys and jwt_jwks_url out."
        )


def _check_origins(origins: Iterable[str]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin) or _USUAL_PORT.fullmatch(origin):
            raise SettingsError(
                f"cors_origins has {origin!r}: write an origin as browsers do, for example https://app.example.com, "
                "in lower case, without a path and without the usual port; none of them may be *."
            )
