"""Where settings come from, which source wins, and what an operator is told of one that cannot be used."""

import re

import pytest

from core.settings import SettingField, Settings, SettingsError, fields, load

OTHER_VALUES: dict[str, tuple[object, str]] = {
    "public_listen": ("0.0.0.0:80", "0.0.0.0:80"),
    "internal_listen": ("[::1]:81", "[::1]:81"),
    "insecure": (("public", "internal"), "public,internal"),
    "auth": ("jwt", "jwt"),
    "jwt_keys": (("RS256=/k", "HS256=/s"), "RS256=/k,HS256=/s"),
    "jwt_jwks_url": ("https://a/keys", "https://a/keys"),
    "jwt_audience": ("streams", "streams"),
    "jwt_issuer": ("https://a", "https://a"),
    "jwt_leeway_seconds": (1.5, "1.5"),
    "jwt_max_life_seconds": (60, "60"),
    "jwt_user_claim": ("uid", "uid"),
    "jwt_strategies_claim": ("books", "books"),
    "expiring_seconds": (9, "9"),
    "proxy_addresses": (("10.0.0.1", "10.1.0.0/16"), "10.0.0.1 10.1.0.0/16"),
    "proxy_user_header": ("X-User", "X-User"),
    "proxy_strategies_header": ("X-Strategies", "X-Strategies"),
    "cors_origins": (("https://a", "https://b"), "https://a,https://b"),
    "session_same_site": ("none", "none"),
    "max_age_seconds": (0, "0"),
    "internal_auth": ("keys", "keys"),
    "internal_keys": ("/etc/t.keys", "/etc/t.keys"),
    "journal": ("/var/lib/t.db", "/var/lib/t.db"),
    "durability": ("process", "process"),
    "shape": ("flat", "flat"),
    "heartbeat_seconds": (2.5, "2.5"),
    "retry_ms": (1, "1"),
    "coalesce_ms": (5, "5"),
    "stall_seconds": (7, "7"),
    "send_buffer_bytes": (4096, "4096"),
    "max_connections": (11, "11"),
    "max_streams_per_user": (16, "16"),
    "max_streams_per_address": (17, "17"),
    "max_accepts_per_second": (18, "18"),
    "keep_rows": (12, "12"),
    "keep_hours": (13, "13"),
    "keep_bytes": (2**21, "2097152"),
    "idempotency_hours": (14, "14"),
    "http": ("tornado", "tornado"),
    "loop": ("uvloop", "uvloop"),
    "console_emit": ("on", "on"),
    "shutdown_delay_seconds": (19, "19"),
    "drain_seconds": (15, "15"),
    "reconnects_per_second": (21, "21"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
}
"""For each setting a value that is not its default, and how it is written in the environment."""

each_field = pytest.mark.parametrize("field", fields(), ids=lambda field: field.name)


def test_without_any_source_the_defaults_apply() -> None:
    assert load({}, {}, {}) == Settings()


def test_every_setting_is_tried_here() -> None:
    assert list(OTHER_VALUES) == [field.name for field in fields()] == list(Settings.__struct_fields__)
    assert all(getattr(Settings(), name) != value for name, (value, _written) in OTHER_VALUES.items())


@each_field
def test_a_setting_can_be_given_by_each_source(field: SettingField) -> None:
    value, written = OTHER_VALUES[field.name]
    in_toml = list(value) if isinstance(value, tuple) else value
    on_the_command_line = value if isinstance(value, tuple) else written

    expected = Settings(**{field.name: value})  # type: ignore[arg-type]  # the table has them right

    assert load({field.name: in_toml}, {}, {}) == expected
    assert load({}, {field.variable: written}, {}) == expected
    assert load({}, {}, {field.name: on_the_command_line}) == expected


@pytest.mark.parametrize(
    ("file", "environment", "flags", "applies"),
    [
        (None, None, None, 2000),
        (1, None, None, 1),
        (1, "2", None, 2),
        (1, "2", "3", 3),
        (1, None, "3", 3),
        (None, "2", "3", 3),
        (None, "2", None, 2),
        (None, None, "3", 3),
    ],
)
def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    file: int | None, environment: str | None, flags: str | None, applies: int
) -> None:
    settings = load(
        {} if file is None else {"retry_ms": file},
        {} if environment is None else {"TALLYWIRE_RETRY_MS": environment},
        {} if flags is None else {"retry_ms": flags},
    )

    assert settings.retry_ms == applies


def test_sources_that_give_different_settings_add_up() -> None:
    settings = load({"retry_ms": 1}, {"TALLYWIRE_SHAPE": "flat"}, {"insecure": ("public",)})

    assert settings == Settings(retry_ms=1, shape="flat", insecure=("public",))


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        ("public", ("public",)),
        ("internal,public", ("internal", "public")),
        ("public, internal", ("public", "internal")),
        ("", ()),
    ],
)
def test_a_list_is_written_with_commas_in_the_environment(written: str, listed: tuple[str, ...]) -> None:
    assert load({"insecure": ["public"]}, {"TALLYWIRE_INSECURE": written}, {}).insecure == listed


def test_other_variables_of_the_environment_are_not_ours() -> None:
    assert load({}, {"PATH": "/bin", "RETRY_MS": "1", "TALLYWIRE_NO_SKIPS": "1"}, {}) == Settings()


UNUSABLE: dict[str, tuple[object, str]] = {
    "insecure": (["everything"], "everything"),
    "internal_auth": ("key", "key"),
    "durability": ("forever", "forever"),
    "shape": ("round", "round"),
    "heartbeat_seconds": (0, "0"),
    "retry_ms": (0, "soon"),
    "coalesce_ms": (-1, "-1"),
    "stall_seconds": (0, "0"),
    "send_buffer_bytes": (4095, "4095"),
    "max_connections": (0, "0"),
    "max_streams_per_user": (-1, "-1"),
    "max_streams_per_address": (-1, "-1"),
    "max_accepts_per_second": (-1, "-1"),
    "shutdown_delay_seconds": (-1, "-1"),
    "reconnects_per_second": (0, "0"),
    "keep_rows": (0, "0"),
    "keep_hours": (2.5, "2.5"),
    "keep_bytes": (1000, "4GiB"),
    "idempotency_hours": ([], ""),
    "drain_seconds": (True, "-20"),
    "log_level": ("loud", "loud"),
    "log_format": ("xml", "xml"),
    "public_listen": (8080, ""),
}
"""For settings that not every value fits: one that does not, in the file and in the environment."""


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_value_in_the_file_that_cannot_be_used_is_refused_by_name(name: str) -> None:
    value, _written = UNUSABLE[name]

    with pytest.raises(SettingsError, match=rf"^{name} in the settings file is {re.escape(repr(value))}: \w"):
        load({name: value}, {}, {})


@pytest.mark.parametrize("name", [name for name in UNUSABLE if name != "public_listen"])
def test_a_value_in_the_environment_that_cannot_be_used_is_refused_by_name(name: str) -> None:
    variable = f"TALLYWIRE_{name.upper()}"
    _value, written = UNUSABLE[name]

    with pytest.raises(SettingsError, match=rf"^{variable} in the environment is .*{re.escape(repr(written))}.*: \w"):
        load({}, {variable: written}, {})


@pytest.mark.parametrize("name", [name for name in UNUSABLE if name not in ("public_listen", "insecure")])
def test_a_value_on_the_command_line_that_cannot_be_used_is_refused_by_name(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    _value, written = UNUSABLE[name]

    with pytest.raises(SettingsError, match=rf"^{flag} on the command line is {re.escape(repr(written))}: \w"):
        load({}, {}, {name: written})


@pytest.mark.parametrize("absurd", [10**15, float("inf"), float("nan"), -(10**15)])
@pytest.mark.parametrize("name", [field.name for field in fields() if isinstance(field.default, int | float)])
def test_a_number_that_no_clock_and_no_memory_could_bear_is_refused(name: str, absurd: float) -> None:
    with pytest.raises(SettingsError, match=f"^{name} in the settings file is "):
        load({name: absurd}, {}, {})


@pytest.mark.parametrize("text", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.1:80", "*"])
def test_a_proxy_that_is_no_address_and_no_block_is_refused_by_name(text: str) -> None:
    expected = rf"^TALLYWIRE_PROXY_ADDRESSES in the environment: '{re.escape(text)}' is no address"

    with pytest.raises(SettingsError, match=expected):
        load({}, {"TALLYWIRE_PROXY_ADDRESSES": f"10.0.0.1,{text}"}, {})


def test_a_value_is_refused_even_where_a_later_source_would_win() -> None:
    with pytest.raises(SettingsError, match="retry_ms in the settings file"):
        load({"retry_ms": 0}, {}, {"retry_ms": "5"})


def test_a_refusal_says_what_is_expected_and_where_to_read_on() -> None:
    with pytest.raises(SettingsError, match=r"Expected `int` >= 1\. `tallywire serve --help` says more\.$"):
        load({"retry_ms": 0}, {}, {})


@pytest.mark.parametrize("name", ["retry_mss", "retry-ms", "RETRY_MS", "serve", ""])
def test_an_unknown_name_in_the_file_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^{name} in the settings file is no setting\. .*--help` lists every one"):
        load({name: 1}, {}, {})


@each_field
def test_every_setting_has_a_description_of_whole_sentences(field: SettingField) -> None:
    assert re.fullmatch(r"\S.*\.", field.description)
    assert "  " not in field.description


@each_field
def test_a_setting_is_known_by_one_name_everywhere(field: SettingField) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", field.name)
    assert field.flag == "--" + field.name.replace("_", "-")
    assert field.variable == "TALLYWIRE_" + field.name.upper()
    assert field.default == getattr(Settings(), field.name)


@each_field
def test_a_setting_with_choices_takes_each_of_them_and_no_other(field: SettingField) -> None:
    for choice in field.choices:
        load({field.name: [choice] if field.is_list else choice}, {}, {})
    if field.choices:
        with pytest.raises(SettingsError):
            load({}, {field.variable: "-".join(field.choices)}, {})


def test_settings_with_choices_and_lists_are_known_as_such() -> None:
    assert {field.name: field.choices for field in fields() if field.choices} == {
        "insecure": ("public", "internal"),
        "auth": ("none", "jwt", "proxy"),
        "session_same_site": ("strict", "lax", "none"),
        "internal_auth": ("none", "keys"),
        "durability": ("power", "process", "none"),
        "shape": ("envelope", "flat"),
        "http": ("tornado", "lean"),
        "loop": ("asyncio", "uvloop"),
        "console_emit": ("off", "on"),
        "log_level": ("debug", "info", "warning", "error"),
        "log_format": ("auto", "text", "json"),
    }
    assert [field.name for field in fields() if field.is_list] == [
        "insecure",
        "jwt_keys",
        "proxy_addresses",
        "cors_origins",
    ]
