"""Which front the servers of these tests serve with."""

from collections.abc import Iterator

import pytest

from tests.fronts import FRONTS
from tests.process import FRONT_VARIABLE

OVER_EVERY_FRONT = frozenset(
    {"test_process", "test_clients", "test_every_byte", "test_internal_access", "test_openapi"}
)
"""Modules about what passes between a client and the server. The others are about what is behind: one front will do,
that of TALLYWIRE_HTTP where it is set."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run whole modules once for each front."""
    if metafunc.module.__name__.rpartition(".")[2] in OVER_EVERY_FRONT:
        metafunc.parametrize("http", FRONTS, indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def http(request: pytest.FixtureRequest) -> Iterator[None]:
    """Before any server of the module starts."""
    with pytest.MonkeyPatch.context() as patch:
        if front := getattr(request, "param", None):
            patch.setenv(FRONT_VARIABLE, front)
        yield
