"""Every setting, once: its unit, its default and a sentence. One frozen struct, read in server.py and nowhere else.

Sources, the later ones win: the defaults here, a TOML file, the environment (`TALLYWIRE_PUBLIC_LISTEN` and so on),
the command line (`--public-listen`).
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct, ValidationError, convert

from core.addresses import parse_networks
from core.models import Shape

Source = Literal["default", "file", "environment", "flag"]
"""Where the value of a setting comes from."""

_WHERE: Mapping[Source, str] = {
    "file": "{name} in the settings file",
    "environment": "{variable} in the environment",
    "flag": "{flag} on the command line",
}


class SettingsError(Exception):
    """A setting cannot be used; the message names it, the source and the fix."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator decides."""

    public_listen: Annotated[
        str, Meta(description="Address of the public listener, HOST:PORT; port 0: a free one.")
    ] = "127.0.0.1:8080"
    internal_listen: Annotated[
        str, Meta(description="Address of the internal listener, HOST:PORT, or unix:PATH for a socket of mode 0600.")
    ] = "127.0.0.1:8081"
    insecure: Annotated[
        tuple[Literal["public", "internal"], ...],
        Meta(description="Listeners that may leave loopback without authentication, where the network is closed."),
    ] = ()
    auth: Annotated[
        Literal["none", "jwt", "proxy"],
        Meta(
            description="Who says who reads a stream. none: whoever asks; jwt: a signed token; proxy: headers of a "
            "proxy in front."
        ),
    ] = "none"
    jwt_keys: Annotated[
        tuple[str, ...],
        Meta(
            description="Keys that tokens are signed with, ALGORITHM=FILE: HS256 a secret, RS256, ES256 and EdDSA a "
            "public key as PEM, each also a JWK set."
        ),
    ] = ()
    jwt_jwks_url: Annotated[
        str, Meta(description="Where further keys are published, as a JWK set: https, or http on this machine.")
    ] = ""
    jwt_audience: Annotated[
        str, Meta(description="What the claim aud of a token must name; empty: it is not looked at.")
    ] = ""
    jwt_issuer: Annotated[
        str, Meta(description="What the claim iss of a token must be; empty: it is not looked at.")
    ] = ""
    jwt_leeway_seconds: Annotated[
        float, Meta(description="Seconds by which the clock that tokens are made by may be ahead.", ge=0, le=30)
    ] = 5
    jwt_max_life_seconds: Annotated[
        int, Meta(description="Seconds from iat to exp that a token may have at most.", ge=1, le=31 * 86_400)
    ] = 86_400
    jwt_user_claim: Annotated[str, Meta(description="Claim with the user id, in decimal, as a string.")] = "sub"
    jwt_strategies_claim: Annotated[
        str, Meta(description='Claim with the strategies that may be read, a list of ids, or "*".')
    ] = "strategies"
    expiring_seconds: Annotated[
        int, Meta(description="Seconds before the end of its token at which a stream is warned.", ge=0, le=3600)
    ] = 60
    proxy_addresses: Annotated[
        tuple[str, ...],
        Meta(
            description="Addresses and CIDR blocks of the proxies in front, whose X-Forwarded-For is believed, and "
            "what they say about the reader with auth proxy."
        ),
    ] = ()
    proxy_user_header: Annotated[str, Meta(description="Header in which a proxy says the user id.")] = (
        "X-Tallywire-User"
    )
    proxy_strategies_header: Annotated[
        str, Meta(description="Header in which a proxy says the strategies: ids with commas between them, or *.")
    ] = "X-Tallywire-Strategies"
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(description="Origins whose pages may read streams, with their cookies, as https://app.example.com."),
    ] = ()
    session_same_site: Annotated[
        Literal["strict", "lax", "none"],
        Meta(description="SameSite of the session's cookie; none where pages of another site read streams."),
    ] = "lax"
    max_age_seconds: Annotated[
        int,
        Meta(
            description="Seconds after which a stream is asked to come back, a fifth more or less, so that a restart "
            "is nothing special. 0: never.",
            ge=0,
            le=31 * 86_400,
        ),
    ] = 12 * 3600
    internal_auth: Annotated[
        Literal["none", "keys"],
        Meta(
            description="Whether callers of the internal listener are asked who they are. keys: by a bearer key of "
            "internal_keys."
        ),
    ] = "none"
    internal_keys: Annotated[
        str,
        Meta(description="File with the keys of internal callers, read again on SIGHUP; see `tallywire internal-key`."),
    ] = ""
    journal: Annotated[
        str,
        Meta(
            description="File of the journal, made when it is not there. A relative path starts at $STATE_DIRECTORY "
            "where that is set, else at the working directory."
        ),
    ] = "tallywire.db"
    durability: Annotated[
        Literal["power", "process", "none"],
        Meta(
            description="What an accepted batch survives. power: a power cut; process: the end of the process, killed "
            "or not; none: nothing, the journal is in memory."
        ),
    ] = "power"
    shape: Annotated[Shape, Meta(description="Shape of the data line for streams that do not ask for one.")] = (
        "envelope"
    )
    heartbeat_seconds: Annotated[
        float, Meta(description="Seconds between two heartbeats of a stream.", ge=0.1, le=3600)
    ] = 15
    retry_ms: Annotated[
        int,
        Meta(
            description="Milliseconds after which a client should reconnect, spread by half to both sides.",
            ge=1,
            le=3_600_000,
        ),
    ] = 2000
    coalesce_ms: Annotated[
        int,
        Meta(
            description="Milliseconds within which further batches of a user leave as one event. 0: at once.",
            ge=0,
            le=60_000,
        ),
    ] = 0
    stall_seconds: Annotated[
        int,
        Meta(
            description="Seconds without the client reading anything after which its stream is ended.", ge=1, le=86_400
        ),
    ] = 30
    send_buffer_bytes: Annotated[
        int,
        Meta(
            description="Bytes the kernel may hold for a stream; a client further behind gets one merged event.",
            ge=4096,
            le=2**30,
        ),
    ] = 32768
    max_connections: Annotated[
        int,
        Meta(
            description="Open streams at most; fewer where the descriptor limit of the process leaves no room.",
            ge=1,
            le=10_000_000,
        ),
    ] = 10_000
    max_streams_per_user: Annotated[
        int, Meta(description="Open streams of one user at most. 0: any number.", ge=0, le=10_000_000)
    ] = 32
    max_streams_per_address: Annotated[
        int,
        Meta(
            description="Open streams of one client address at most; an IPv6 client has its whole /64. 0: any number.",
            ge=0,
            le=10_000_000,
        ),
    ] = 0
    max_accepts_per_second: Annotated[
        int,
        Meta(
            description="Connections accepted on the public listener within a second; others wait in the kernel's "
            "queue. 0: any number. Only with http lean.",
            ge=0,
            le=10_000_000,
        ),
    ] = 2000
    keep_rows: Annotated[
        int,
        Meta(
            description="Rows (batches) the journal keeps for resuming; the newest of a stream key always stays. "
            "With durability none at most 100000.",
            ge=1,
            le=10**9,
        ),
    ] = 10_000_000
    keep_hours: Annotated[
        int,
        Meta(description="Hours of running time that the journal keeps a row for resuming.", ge=1, le=87_600),
    ] = 7 * 24
    keep_bytes: Annotated[
        int,
        Meta(
            description="Bytes the journal may use; rows go early when it comes near, and emits are refused when what "
            "must stay fills it.",
            ge=2**20,
            le=2**46,
        ),
    ] = 4 * 2**30
    idempotency_hours: Annotated[
        int,
        Meta(description="Hours of running time within which a repeated idempotency key counts once.", ge=1, le=87_600),
    ] = 24
    http: Annotated[
        Literal["tornado", "lean"],
        Meta(
            description="Who speaks HTTP. lean: our own front with a parser in C; tornado: Tornado's own server, at "
            "four times the cost of an emit."
        ),
    ] = "lean"
    loop: Annotated[
        Literal["asyncio", "uvloop"],
        Meta(description="The event loop. uvloop: the one of that package, which must be installed."),
    ] = "asyncio"
    console_emit: Annotated[
        Literal["off", "on"],
        Meta(
            description="Whether the console has a form that sends a test batch; whoever uses it needs what every "
            "emit needs."
        ),
    ] = "off"
    shutdown_delay_seconds: Annotated[
        int,
        Meta(
            description="Seconds between not being ready and no longer listening, so that load balancers can notice. "
            "In Kubernetes 5.",
            ge=0,
            le=3600,
        ),
    ] = 0
    drain_seconds: Annotated[
        int, Meta(description="Seconds a shutdown may take before what is still open is cut.", ge=1, le=3600)
    ] = 20
    reconnects_per_second: Annotated[
        int,
        Meta(
            description="Streams that are told to go at a shutdown are told to come back over a time in which about "
            "so many arrive each second.",
            ge=1,
            le=10_000_000,
        ),
    ] = 1000
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severity that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], Meta(description="auto: text on a terminal, else JSON lines.")
    ] = "auto"


class SettingField(Struct, frozen=True):
    """One setting as the command line and the documents show it."""

    name: str
    description: str
    default: object
    choices: tuple[str, ...]
    is_list: bool

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "TALLYWIRE_" + self.name.upper()


def fields() -> tuple[SettingField, ...]:
    """All settings in the order of the struct."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    return tuple(_describe(name, hints[name], getattr(defaults, name)) for name in Settings.__struct_fields__)


def load(file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """The settings that apply. Raises SettingsError, naming the source, the setting and what it expects."""
    values: dict[str, object] = {}
    for source, given in _sources(file, environment, flags):
        for name, value in given.items():
            _check(_WHERE[source], name, value)
        values |= given
    return convert(values, Settings, strict=False)


def problems(
    file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> list[SettingsError]:
    """Every setting that cannot be used, where `load` names the first."""
    found = []
    for source, given in _sources(file, environment, flags):
        for name, value in given.items():
            try:
                _check(_WHERE[source], name, value)
            except SettingsError as error:
                found.append(error)
    return found


def origins(
    file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> dict[str, Source]:
    """For each setting the source that wins."""
    found: dict[str, Source] = dict.fromkeys(Settings.__struct_fields__, "default")
    for source, given in _sources(file, environment, flags):
        found |= dict.fromkeys(given, source)
    return found


def read_file(path: Path | None) -> Mapping[str, object]:
    """What a TOML file says; nothing without one. Raises SettingsError, naming the file."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings file {path}: {error}") from error


def journal_path(settings: Settings, environment: Mapping[str, str]) -> Path:
    """Where the journal is: see the setting `journal`. systemd may name several state directories; the first counts."""
    return Path(environment.get("STATE_DIRECTORY", "").partition(":")[0], settings.journal)


def _sources(
    file: Mapping[str, object], environment: Mapping[str, str], flags: Mapping[str, object]
) -> tuple[tuple[Source, Mapping[str, object]], ...]:
    """The later ones win."""
    return ("file", file), ("environment", _from_environment(environment)), ("flag", flags)


def _check(source: str, name: str, value: object) -> None:
    setting = SettingField(name, "", None, (), is_list=False)
    where = source.format(name=name, variable=setting.variable, flag=setting.flag)
    if name not in Settings.__struct_fields__:
        raise SettingsError(f"{where} is no setting. `tallywire serve --help` lists every one.")
    try:
        convert({name: value}, Settings, strict=False)
    except ValidationError as error:
        message = str(error).partition(" - at `")[0]
        raise SettingsError(f"{where} is {value!r}: {message}. `tallywire serve --help` says more.") from error
    if name == "proxy_addresses":
        _check_addresses(where, value)


def _check_addresses(where: str, value: object) -> None:
    try:
        parse_networks(convert(value, tuple[str, ...]))
    except ValueError as error:
        raise SettingsError(f"{where}: {error}. Write 10.0.0.1 or 10.0.0.0/8.") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    return {
        field.name: environment[field.variable].replace(",", " ").split()
        if field.is_list
        else environment[field.variable]
        for field in fields()
        if field.variable in environment
    }


def _describe(name: str, hint: object, default: object) -> SettingField:
    inner, meta = get_args(hint)[:2]
    is_list = get_origin(inner) is tuple
    literal = get_args(inner)[0] if is_list else inner
    choices = get_args(literal) if get_origin(literal) is Literal else ()
    return SettingField(name, meta.description, default, choices, is_list)
