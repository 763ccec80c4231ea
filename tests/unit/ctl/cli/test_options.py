"""The addresses, endpoints, ports and connections that xlbctl accepts."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.cli import options
from ctl.config.model import format_endpoint


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[2001:db8::1]:8080", ("2001:db8::1", 8080)),
        ("[2001:DB8:0::1]:1", ("2001:db8::1", 1)),
        ("[10.0.0.1]:65535", ("10.0.0.1", 65535)),
    ],
)
def test_endpoint(text: str, expected: tuple[str, int]) -> None:
    assert options.parse_endpoint(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.1", "not ADDR:PORT"),
        ("2001:db8::1:80", "not ADDR:PORT"),
        (":80", "not ADDR:PORT"),
        ("", "not ADDR:PORT"),
        ("10.0.0.1:", "not a port"),
        ("10.0.0.1:0", "not a port"),
        ("10.0.0.1:70000", "not a port"),
        ("10.0.0.1:-1", "not a port"),
        ("10.0.0.1:٣", "not a port"),
        ("10.0.0.1:" + "9" * 5000, "not a port"),
        ("10.0.0.256:80", "not an IP address"),
        ("example.com:80", "not an IP address"),
        ("[fe80::1%eth0]:80", "zone"),
        ("[10.0.0.1:80", "not an"),
    ],
)
def test_an_invalid_endpoint_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        options.parse_endpoint(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_endpoint_survives_formatting(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    assert options.parse_endpoint(format_endpoint(str(address), port)) == (str(address), port)


@given(st.text())
def test_any_string_is_an_endpoint_or_an_error_message(text: str) -> None:
    try:
        _, port = options.parse_endpoint(text)
    except ValueError as error:
        assert "expected" in str(error)
    else:
        assert 1 <= port <= 65535


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.7:40000 -> 10.77.0.100:80",
        "192.0.2.7:40000->10.77.0.100:80",
        "  192.0.2.7:40000   →   10.77.0.100:80 ",
        "192.0.2.7:40000 10.77.0.100:80",
        "192.0.2.7:40000,10.77.0.100:80",
    ],
)
def test_connection(text: str) -> None:
    assert options.parse_connection(text) == (("192.0.2.7", 40000), ("10.77.0.100", 80))


def test_connection_ipv6() -> None:
    assert options.parse_connection("[2001:db8::7]:5 -> [2001:db8::100]:53") == (("2001:db8::7", 5), ("2001:db8::100", 53))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.7:40000", "not a connection"),
        ("", "not a connection"),
        ("192.0.2.7 -> 10.77.0.100:80", "not ADDR:PORT"),
        ("192.0.2.7:1 -> 10.77.0.100:0", "not a port"),
        ("192.0.2.7:1 -> [2001:db8::1]:80", "mixes IPv4 and IPv6"),
    ],
)
def test_an_invalid_connection_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        options.parse_connection(text)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (options.PORTS, "80", 80),
        (options.PORTS, "8000-8010", "8000-8010"),
        (options.PORTS, "8000-8000", 8000),
        (options.ADDRESS_WITH_PREFIX, "10.0.0.100/24", "10.0.0.100/24"),
        (options.ADDRESS_WITH_PREFIX, "2001:DB8::100/64", "2001:db8::100/64"),
        (options.VIP_ADDRESS, "10.0.0.100/24", "10.0.0.100"),
        (options.number(0), "7", 7),
    ],
)
def test_types(kind: Any, text: str, expected: object) -> None:
    assert kind.convert(text, None, None) == expected


@pytest.mark.parametrize(
    ("kind", "text", "why"),
    [
        (options.PORTS, "8010-8000", "ends before it starts"),
        (options.PORTS, "8000-", "not a port"),
        (options.PORTS, "0-10", "not a port"),
        (options.PORTS, "1-70000", "not a port"),
        (options.ADDRESS_WITH_PREFIX, "10.0.0.100", "no prefix length"),
        (options.ADDRESS_WITH_PREFIX, "10.0.0.100/33", "expected 0 to 32"),
        (options.ADDRESS_WITH_PREFIX, "2001:db8::1/129", "expected 0 to 128"),
        (options.ADDRESS_WITH_PREFIX, "10.0.0.100/", "expected 0 to 32"),
        (options.number(0), "-1", "out of range"),
        (options.number(0), "one", "not a number"),
        (options.number(1, 5), "6", "from 1 to 5"),
    ],
)
def test_types_refuse(kind: Any, text: str, why: str) -> None:
    with pytest.raises(click.BadParameter, match=why):
        kind.convert(text, None, None)


def test_farm_fields_hold_what_was_given_and_nothing_else() -> None:
    given = {"vip": "10.0.0.1", "port": None, "check_kind": "http", "check_rise": 3, "check_path": None}
    assert options.collect_farm_fields(given) == {"vip": "10.0.0.1", "health": {"kind": "http", "rise": 3}}


def test_a_completion_offers_nothing_without_a_daemon(tmp_path: Any) -> None:
    from ctl.cli.base import Session

    node = tmp_path / "node.toml"
    node.write_text(f'[node]\nrun_dir = "{tmp_path}"\n[data]\ninterfaces = ["lo"]\n')
    complete: Callable[..., list[Any]] = options.complete_farm
    context = click.Context(click.Command("x"), obj=Session(config=node))
    assert complete(context, None, "") == []
