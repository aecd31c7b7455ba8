"""The addresses that a client's URL may lead to: public ones only (SSRF protection).

For IPv4, it refuses all networks that the IANA registry of special-purpose addresses does not call global, multicast,
reserved addresses and those private to a cloud. For IPv6, it refuses everything outside global unicast (2000::/3). That
excludes all forms that contain an IPv4 address except 6to4, Teredo and ISATAP, which are refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_REFUSED_IPV4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's platform services, reachable from every virtual machine
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_REFUSED_IPV6 = [
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
]
# The middle of an ISATAP interface identifier, before the IPv4 address: locally and universally administered.
_ISATAP = (0x00005EFE, 0x02005EFE)

# The network of one IPv6 client, which can use each of its addresses.
_CLIENT_IPV6_BITS = 64


def is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_IPV4)
    if address.scope_id is not None or address not in _GLOBAL_UNICAST:
        return False
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _REFUSED_IPV6)


@dataclass(frozen=True, slots=True)
class AllowedAddresses:
    """Addresses that an operator allows in addition to public ones: whole networks, or one port of one address."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    endpoints: frozenset[tuple[IPv4Address | IPv6Address, int]]

    @classmethod
    def parse(cls, text: str) -> AllowedAddresses:
        """Parses e.g. `10.0.0.0/8, 127.0.0.1:9000, [::1]:9000`. Raises a ValueError that names the entry."""
        networks: list[IPv4Network | IPv6Network] = []
        endpoints: set[tuple[IPv4Address | IPv6Address, int]] = set()
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                if entry.startswith("[") or (entry.count(":") == 1 and "/" not in entry):
                    host, _, port = entry.rpartition(":")
                    endpoints.add((ip_address(host.strip("[]")), _parse_port(port)))
                else:
                    networks.append(ip_network(entry))
            except ValueError:
                raise ValueError(
                    f"{entry!r} is neither a network like 10.0.0.0/8 nor an address with a port like 127.0.0.1:9000"
                ) from None
        return cls(tuple(networks), frozenset(endpoints))

    def __str__(self) -> str:
        hosts = ((f"[{address}]" if address.version == 6 else str(address), port) for address, port in self.endpoints)
        return ",".join([*map(str, self.networks), *sorted(f"{host}:{port}" for host, port in hosts)])

    def permits(self, host: str, port: int) -> bool:
        """Returns whether a connection to this address is allowed. `host` is an address of the resolver or the URL."""
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return (
            is_public(address)
            or (address, port) in self.endpoints
            or any(address in network for network in self.networks)
        )


def _parse_port(text: str) -> int:
    port = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < port < 65536:
        raise ValueError(text)
    return port


@lru_cache(4096)
def client_network(address: str) -> str:
    """Returns the key of a client for limits: an IPv4 address, or the network of an IPv6 address. Other text is
    returned unchanged.
    """
    try:
        parsed = ip_address(address)
    except ValueError:  # e.g. of a Unix socket
        return address
    if isinstance(parsed, IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(IPv6Network((int(parsed), _CLIENT_IPV6_BITS), strict=False))
