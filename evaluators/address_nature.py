"""What kind of place an address is, for whoever must not be led inside a network."""

from __future__ import annotations

import ipaddress

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def nature(address: str) -> str:
    """public, private, loopback, link-local or special; of an address that carries another (IPv4 in IPv6), the other's.

    Raises `ValueError` for what is no address.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return nature(str(inner))
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    if ip.is_multicast or ip.is_unspecified or ip == _BROADCAST:
        return "special"
    return "public" if ip.is_global else "private"
