"""Keys of internal callers: what a file of them says, who holds one, and which hosts and pages are our own."""

from hashlib import sha256

import pytest
from click.testing import CliRunner

from core.access import MAX_KEYS, ROLES, Keys, Role, bearer_token, is_loopback_name, is_own_origin, key_of
from core.cli import tallywire

SECRET = "a-secret-of-the-tests"
DIGEST = sha256(SECRET.encode()).hexdigest()
OTHER_DIGEST = sha256(b"another").hexdigest()


def found(keys: Keys, secret: str) -> tuple[str, set[Role]] | None:
    key = keys.find(secret)
    return None if key is None else (key.caller, set(key.roles))


# ---- the file


def test_a_line_is_a_name_its_roles_and_the_hash_of_a_secret() -> None:
    keys = Keys.parse(f"orders emit {DIGEST}\noperator  admin,read\t{OTHER_DIGEST}\n")

    assert found(keys, SECRET) == ("orders", {"emit"})
    assert found(keys, "another") == ("operator", {"read", "admin"})
    assert found(keys, "a third") is None
    assert found(keys, DIGEST) is None, "who has read the file has no key"


def test_comments_blank_lines_and_capital_digits_are_fine() -> None:
    keys = Keys.parse(f"# who calls\n\n  # indented\n  orders emit {DIGEST.upper()}  \r\n")

    assert found(keys, SECRET) == ("orders", {"emit"})


def test_several_keys_of_one_name_count_so_that_secrets_can_be_replaced() -> None:
    keys = Keys.parse(f"orders emit {DIGEST}\norders emit {OTHER_DIGEST}")

    assert found(keys, SECRET) == found(keys, "another") == ("orders", {"emit"})


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_itself_and_no_other(role: Role) -> None:
    assert found(Keys.parse(f"a {role} {DIGEST}"), SECRET) == ("a", {role})


def test_a_secret_beyond_ascii_is_the_bytes_that_were_sent() -> None:
    sent = "ключ".encode()

    assert found(Keys.parse(f"a read {sha256(sent).hexdigest()}"), sent.decode("latin-1")) == ("a", {"read"})


BAD_LINES = {
    "two words": (f"orders {DIGEST}", "NAME ROLES SHA256"),
    "a blank between roles": (f"orders emit, read {DIGEST}", "NAME ROLES SHA256"),
    "an unknown role": (f"orders write {DIGEST}", "a role is one of emit, read, admin"),
    "a role in capitals": (f"orders EMIT {DIGEST}", "a role is one of emit, read, admin"),
    "no role": (f"orders , {DIGEST}", "a role is one of emit, read, admin"),
    "a comma too many": (f"orders emit, {DIGEST}", "a role is one of emit, read, admin"),
    "63 digits": (f"orders emit {DIGEST[:-1]}", "64 hexadecimal digits"),
    "65 digits": (f"orders emit {DIGEST}0", "64 hexadecimal digits"),
    "no digits": (f"orders emit {'g' * 64}", "64 hexadecimal digits"),
    "the secret itself": (f"orders emit {SECRET}", "`tallywire internal-key`"),
    "a name of 65": (f"{'n' * 65} emit {DIGEST}", "1 to 64 printable ASCII"),
    "a name beyond ASCII": (f"заказы emit {DIGEST}", "1 to 64 printable ASCII"),
    "the secret of another line": (f"other read {OTHER_DIGEST}", "its secret is that of line 2 already"),
}


@pytest.mark.parametrize(("line", "said"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_line_that_cannot_be_used_is_refused_by_its_number_and_not_repeated(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^line 4: ") as refused:
        Keys.parse(f"# comment\nfirst emit {OTHER_DIGEST}\n\n{line}\n")

    assert said in str(refused.value)
    assert not [word for word in line.split() if len(word) > 5 and word in str(refused.value)]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment"])
def test_a_file_without_a_key_is_refused_with_the_command_that_makes_one(text: str) -> None:
    with pytest.raises(ValueError, match="`tallywire internal-key NAME --role emit`"):
        Keys.parse(text)


def test_a_file_has_no_more_keys_than_a_call_can_be_compared_with() -> None:
    lines = [f"a emit {sha256(bytes([number])).hexdigest()}" for number in range(MAX_KEYS + 1)]

    assert len(Keys.parse("\n".join(lines[:-1])).keys) == MAX_KEYS
    with pytest.raises(ValueError, match=f"more than {MAX_KEYS} keys"):
        Keys.parse("\n".join(lines))


# ---- the command


def test_the_command_prints_a_secret_and_the_line_that_lets_it_in() -> None:
    said = CliRunner().invoke(tallywire, ["internal-key", "orders", "--role", "emit", "--role", "read"])

    assert said.exit_code == 0
    (_, secret, _, line) = said.output.splitlines()
    assert found(Keys.parse(line), secret.strip()) == ("orders", {"emit", "read"})
    assert len(secret.strip()) >= 43, "32 random bytes"
    assert secret.strip() not in line


def test_each_secret_of_the_command_is_new() -> None:
    one, other = (CliRunner().invoke(tallywire, ["internal-key", "a", "--role", "emit"]).output for _ in range(2))

    assert set(one.splitlines()[1::2]).isdisjoint(other.splitlines()[1::2])


@pytest.mark.parametrize("name", ["", "two words", "n" * 65, "#orders", "заказы", "tab\tbed"])
def test_the_command_refuses_a_name_that_no_line_could_have(name: str) -> None:
    said = CliRunner().invoke(tallywire, ["internal-key", name, "--role", "emit"])

    assert said.exit_code == 2
    assert "1 to 64 printable ASCII characters" in " ".join(said.output.split())


@pytest.mark.parametrize("arguments", [["orders"], ["orders", "--role", "write"], ["--role", "emit"]])
def test_the_command_needs_a_name_and_a_role_that_exists(arguments: list[str]) -> None:
    assert CliRunner().invoke(tallywire, ["internal-key", *arguments]).exit_code == 2


def test_a_key_writes_its_roles_in_one_order() -> None:
    assert key_of("a", ("admin", "emit", "read"), SECRET).line == f"a emit,read,admin {DIGEST}"


# ---- hosts, origins, tokens


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8081", "localhost:", "127.0.0.1", "127.0.0.1:8081", "127.3.2.1:1", "[::1]", "[::1]:8081"],
)
def test_a_loopback_name_is_known_with_any_port(host: str) -> None:
    assert is_loopback_name(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a",
        ":8081",
        "10.0.0.1",
        "0.0.0.0:8081",
        "128.0.0.1",
        "127.0.0.1.evil.example",
        "127.evil.example:8081",
        "127.0.0",
        "localhost.evil.example",
        "evil.localhost.example",
        "xlocalhost",
        "localhost:8081.evil.example",
        "localhost\n",
        "[::2]:8081",
        "::1",
        "127.0.0.١",
    ],
)
def test_any_other_name_may_have_been_made_to_point_here(host: str) -> None:
    assert not is_loopback_name(host)


@pytest.mark.parametrize(
    ("origin", "host", "is_own"),
    [
        ("http://localhost:8081", "localhost:8081", True),
        ("http://LOCALHOST:8081", "localhost:8081", True),
        ("https://tally.example", "Tally.example", True),
        ("http://[::1]:8081", "[::1]:8081", True),
        ("http://localhost:3000", "localhost:8081", False),
        ("http://localhost", "localhost:8081", False),
        ("http://127.0.0.1:8081", "localhost:8081", False),
        ("http://evil.example", "localhost:8081", False),
        ("http://localhost:8081.evil.example", "localhost:8081", False),
        ("http://localhost:8081,http://evil.example", "localhost:8081", False),
        ("localhost:8081", "localhost:8081", False),
        ("null", "localhost:8081", False),
        ("null", "null", False),
        ("null", "", False),
        ("", "", False),
        ("", "localhost:8081", False),
        ("http://", "", False),
        ("http://evil.example", None, False),
    ],
)
def test_an_origin_is_ours_when_it_has_our_host_and_port(origin: str, host: str | None, is_own: bool) -> None:
    assert is_own_origin(origin, host) is is_own


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER  abc ", "abc"),
        ("Bearer a,b", "a,b"),
        ("Bearer ", None),
        ("Bearer", None),
        ("Bearerabc", None),
        ("Basic abc", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_a_bearer_token_is_what_stands_behind_the_scheme(authorization: str | None, token: str | None) -> None:
    assert bearer_token(authorization) == token
