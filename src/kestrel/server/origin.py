"""Where a connection comes from, as far as that decides anything. Pure; called by the connections."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

IPV6_PREFIX_BITS = 64
"""Whoever has one IPv6 address usually has 2^64 of them, so these count as one."""

ADDRESSES_REMEMBERED = 4096


def origin_of(address: str) -> str:
    """What one guest has one of: an IPv4 address, or the first half of an IPv6 address."""
    if ":" not in address:
        return address
    found = _parsed(address)
    if found is None:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.IPv6Network((int(found), IPV6_PREFIX_BITS), strict=False))


@lru_cache(maxsize=ADDRESSES_REMEMBERED)
def is_loopback_peer(address: str) -> bool:
    """Whether the other end is on this machine."""
    found = _parsed(address)
    return found is not None and found.is_loopback


def _parsed(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
