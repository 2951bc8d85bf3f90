"""Whose a request is behind proxies: what a client claims of itself must not count."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.addresses import client_address, counted_as, parse_networks

PROXIES = parse_networks(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"])


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.1.1.1, 198.51.100.1,10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "10.9.9.9, 10.0.0.2", "10.9.9.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "198.51.100.1, ", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        ("10.0.0.1", "[2001:db9::1]:4711", "2001:db9::1"),
        ("10.0.0.1", "[2001:db9::1]", "2001:db9::1"),
        ("10.0.0.1", "2001:db9::1", "2001:db9::1"),
        ("2001:db8::5", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "::ffff:198.51.100.1", "198.51.100.1"),
        ("fe80::1%eth0", "", "fe80::1"),
        ("192.0.2.7", "198.51.100.1", "198.51.100.1"),
        ("192.0.2.8", "198.51.100.1", "192.0.2.8"),
        ("", "198.51.100.1", ""),
        ("/run/proxy.sock", "198.51.100.1", ""),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_proxy(peer: str, forwarded_for: str, client: str) -> None:
    assert client_address(peer, forwarded_for, PROXIES) == client


def test_without_proxies_nobody_is_believed() -> None:
    assert client_address("10.0.0.1", "198.51.100.1", ()) == "10.0.0.1"


@given(claimed=st.text(max_size=60))
def test_whatever_a_client_claims_it_is_who_the_proxy_saw(claimed: str) -> None:
    assert client_address("10.0.0.1", f"{claimed}, 198.51.100.1, 10.0.0.2", PROXIES) == "198.51.100.1"


@given(claimed=st.text(max_size=60))
def test_whatever_a_client_claims_without_a_proxy_it_is_who_is_connected(claimed: str) -> None:
    assert client_address("198.51.100.1", claimed, PROXIES) == "198.51.100.1"


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
    ],
)
def test_an_ipv6_client_counts_with_all_addresses_it_may_choose(address: str, counted: str) -> None:
    assert counted_as(address) == counted


@pytest.mark.parametrize("text", ["", "localhost", "10.0.0.1/8", "300.0.0.1", "10.0.0.1:80"])
def test_what_is_no_address_and_no_block_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"^'{text}' is no address"):
        parse_networks(["10.0.0.1", text])
