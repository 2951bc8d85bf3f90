"""Whose a request is when a proxy has sent it on, and which addresses count as one. Pure.

`X-Forwarded-For` is a list that anybody may begin and every proxy appends to. What stands to the left of a hop that no
trusted proxy has written is therefore whatever its sender liked, and is never looked at.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IPV6_PREFIX = 64
"""Bits of an IPv6 address that make one network of one subscriber, who may choose all the others."""

Network = IPv4Network | IPv6Network
Networks = tuple[Network, ...]


def parse_networks(texts: Iterable[str]) -> Networks:
    """Addresses and CIDR blocks. Raises ValueError, naming the one that is neither."""
    return tuple(_network(text) for text in texts)


def client_address(peer: str, forwarded_for: str, proxies: Networks) -> str:
    """The IP address of whoever asked: the rightmost hop that is none of the `proxies`.

    `peer`: who is connected, empty when that is not known. A hop that cannot be read ends the way: the proxy that
    reported it is as far as anybody can see.
    """
    address = _address(peer)
    if address is None:
        return ""
    hops = forwarded_for.split(",") if proxies else []
    while hops and is_within(address, proxies):
        hop = _address(_without_port(hops.pop().strip()))
        if hop is None:
            break
        address = hop
    return str(address)


def is_address_within(text: str, networks: Networks) -> bool:
    """The same for an address as text; one that cannot be read is nowhere."""
    address = _address(text)
    return address is not None and is_within(address, networks)


def is_within(address: IPv4Address | IPv6Address, networks: Networks) -> bool:
    """One of the networks has this address."""
    return any(address in network for network in networks)


@lru_cache(1024)
def counted_as(address: str) -> str:
    """What addresses of one client have in common: an IPv4 address, the /64 of an IPv6 one."""
    known = _address(address)
    return str(IPv6Network((known, IPV6_PREFIX), strict=False)) if isinstance(known, IPv6Address) else address


def _network(text: str) -> Network:
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no address and no block of addresses") from error


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Over a socket for both families IPv4 clients have mapped addresses: they are the same clients."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _without_port(hop: str) -> str:
    """`192.0.2.1:4711` and `[2001:db8::1]:4711` are written by some proxies."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    host, colon, _port = hop.rpartition(":")
    return host if colon and ":" not in host else hop
