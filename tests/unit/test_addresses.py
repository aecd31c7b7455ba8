"""Which addresses a URL may lead to, range by range and at the edges of each."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from service.addresses import AllowedAddresses, is_public
from service.config.settings import SettingsError, load

NONE = AllowedAddresses.parse("")

REFUSED = [
    *("0.0.0.0", "0.255.255.255", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1"),
    *(
        "127.255.255.255",
        "168.63.129.16",
        "169.254.0.0",
        "169.254.169.254",
        "169.254.255.255",
        "172.16.0.0",
        "172.31.255.255",
    ),
    *("192.0.0.0", "192.0.0.9", "192.0.0.170", "192.0.0.255", "192.0.2.0", "192.0.2.255", "192.31.196.0"),
    *("192.52.193.0", "192.88.99.0", "192.88.99.255", "192.168.0.0", "192.168.255.255", "192.175.48.0"),
    *("198.18.0.0", "198.19.255.255", "198.51.100.0", "198.51.100.255", "203.0.113.0", "203.0.113.255"),
    *("224.0.0.0", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
    *("::", "::1", "::2", "fe80::1", "fe80::1%lo", "febf::1", "fec0::1", "fc00::1", "fdff::1", "ff02::1", "ff0e::1"),
    *("100::1", "2001::1", "2001:1ff:ffff::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "3fff::1"),
    *("3fff:fff:ffff::1", "2620:4f:8000::1", "4000::1", "5f00::1", "1fff:ffff::1", "2606:4700::1%lo"),
    # an IPv4 address inside: mapped, translated, compatible, 6to4, both of NAT64, Teredo, ISATAP
    *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1", "::127.0.0.1", "::8.8.8.8", "2002:7f00:1::"),
    *("2002:808:808::", "64:ff9b::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::127.0.0.1", "2001:0:7f00:1::"),
    *("2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1"),
]
PUBLIC = [
    *("1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0"),
    *("169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0"),
    *("192.31.195.255", "192.31.197.0", "192.52.192.255", "192.52.194.0", "192.88.98.255", "192.88.100.0"),
    *("192.167.255.255", "192.169.0.0", "192.175.47.255", "192.175.49.0", "198.17.255.255", "198.20.0.0"),
    *("198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255", "8.8.8.8"),
    *("2000::1", "2001:200::1", "2001:db7:ffff::1", "2001:db9::1", "2001:ffff::1", "2003::1", "2606:4700::1111"),
    *("2620:4f:7fff::1", "2620:4f:8001::1", "3ffe:ffff::1", "3fff:1000::1", "2606:4700::5eff:1:1"),
]


@pytest.mark.parametrize("address", REFUSED)
def test_special_purpose_address_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not NONE.permits(address, 80)


@pytest.mark.parametrize("address", PUBLIC)
def test_global_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))
    assert NONE.permits(address, 80)


@pytest.mark.parametrize("text", ["localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", ""])
def test_unusual_spelling_of_an_address_is_refused(text: str) -> None:
    assert not NONE.permits(text, 80)


def test_network_can_be_allowed() -> None:
    allowed = AllowedAddresses.parse("10.1.0.0/16, fd00::/8,192.168.7.7")
    assert all(allowed.permits(*endpoint) for endpoint in [("10.1.2.3", 1), ("fd12::1", 65535), ("192.168.7.7", 80)])
    assert not allowed.permits("10.2.0.0", 80)
    assert not allowed.permits("192.168.7.8", 80)
    assert not allowed.permits("::ffff:10.1.2.3", 80)


def test_one_port_of_an_address_can_be_allowed() -> None:
    allowed = AllowedAddresses.parse("127.0.0.1:9000,[::1]:9001")
    assert all(allowed.permits(*endpoint) for endpoint in [("127.0.0.1", 9000), ("::1", 9001)])
    assert not allowed.permits("127.0.0.1", 9001)
    assert not allowed.permits("127.0.0.2", 9000)
    assert not allowed.permits("::1", 9000)


@pytest.mark.parametrize(
    "entry",
    [
        "localhost",
        "10.0.0.1/8",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        "[::1]",
        "1.2.3",
        "*",
    ],
)
def test_invalid_entry_is_quoted(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.setenv("DAGUERRE_FETCH_ALLOW", f"10.0.0.0/8,{entry}")
    with pytest.raises(SettingsError, match="DAGUERRE_FETCH_ALLOW") as refused:
        load()
    assert repr(entry) in str(refused.value)
