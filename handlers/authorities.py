"""From settings to who says who reads; whatever is weak or missing is refused at the start."""

import re
from collections.abc import Callable, Iterable

from core.addresses import parse_networks
from core.settings import Settings, SettingsError
from handlers.credentials import Anybody, Authority, ProxyAuthority

_ORIGIN = re.compile(r"https?://([A-Za-z0-9.\-_]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def authority_of(settings: Settings, clock: Callable[[], float]) -> Authority:
    """Who says who reads. `clock` is monotonic seconds. Raises SettingsError, naming the setting and the fix."""
    _check_origins(settings.cors_origins)
    if settings.auth == "none":
        return Anybody()
    if settings.auth == "proxy":
        if not settings.proxy_addresses:
            raise SettingsError("auth is proxy, and nobody is believed: name the proxies with --proxy-addresses.")
        proxies = parse_networks(settings.proxy_addresses)
        return ProxyAuthority(proxies, settings.proxy_user_header, settings.proxy_strategies_header)
    from handlers.tokens import token_authority  # see there

    return token_authority(settings, clock)


def _check_origins(origins: Iterable[str]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"cors_origins has {origin!r}: write an origin as browsers do, for example https://app.example.com, "
                "without a path, and none of them with *."
            )
