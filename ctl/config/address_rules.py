"""Which addresses can be VIPs and backends: what a change adds is checked against the addresses that the nodes themselves have.

Pure; the nodes' addresses are an argument. A configuration that is stored already is not refused: `problems` with an empty old
configuration lists what is wrong with it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ctl.config.model import Config
from ctl.errors import Code, InvalidInput

THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3
LIMITED_BROADCAST = ipaddress.ip_address("255.255.255.255")
ONE_HOST = "use the address of one host"


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """An address that a node has itself, not as a VIP."""

    node: str
    device: str
    address: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Problem:
    """An address that does not work. yields: `--force` accepts it."""

    key: str
    address: str
    message: str
    remedy: str
    code: Code = Code.INVALID_VALUE
    yields: bool = False


def check_added(old: Config, new: Config, own: Iterable[OwnAddress], forced: bool = False) -> None:
    """Raises InvalidInput for the first address that a change adds and that does not work."""
    for problem in problems(old, new, own):
        if not (forced and problem.yields):
            raise InvalidInput(f"{problem.message}; {problem.remedy}", problem.key, problem.code)


def problems(old: Config, new: Config, own: Iterable[OwnAddress]) -> Iterator[Problem]:
    """Of the VIPs and backends that `new` has and `old` has not."""
    of_nodes: dict[str, OwnAddress] = {}
    broadcasts: dict[str, OwnAddress] = {}
    for each in own:
        of_nodes.setdefault(each.address, each)
        broadcasts[_broadcast(each.address, each.prefix_length)] = each
    added_vips = [vip for address, vip in new.vips.items() if address not in old.vips]
    servers = {backend.address for farm in new.farms.values() for backend in farm.backends} if added_vips else set()
    for vip in added_vips:
        key, holder = f"vip.{vip.address}", of_nodes.get(vip.address)
        unusable = _unusable(vip.address)
        if unusable:
            yield Problem(key, vip.address, *unusable)
        elif _broadcast(vip.address, vip.prefix_length) == vip.address:
            yield Problem(key, vip.address, f"{vip.address} is the broadcast address of /{vip.prefix_length}", ONE_HOST)
        elif holder is not None:
            message = (
                f"{vip.address} is {holder.node}'s own address on {holder.device}: as a VIP it moves to the peer, and a guard "
                "closes the node's own services"
            )
            yield Problem(key, vip.address, message, "use a free address, or --force", Code.OWN_ADDRESS, yields=True)
        elif vip.address in servers:
            message = f"{vip.address} is the address of a backend, which would not be reached"
            yield Problem(key, vip.address, message, "use a free address", Code.OWN_ADDRESS)
    yield from _of_backends(old, new, {vip.address for vip in added_vips}, of_nodes, broadcasts)


def _of_backends(
    old: Config,
    new: Config,
    added_vips: set[str],
    of_nodes: Mapping[str, OwnAddress],
    broadcasts: Mapping[str, OwnAddress],
) -> Iterator[Problem]:
    for name, farm in new.farms.items():
        before = old.farms.get(name)
        if before is farm:
            continue
        known = {(backend.address, backend.port) for backend in before.backends} if before else set()
        for backend in farm.backends:
            address = backend.address
            if (address, backend.port) in known:
                continue
            key, holder = f"farm.{name}.backend {backend.endpoint}", of_nodes.get(address)
            unusable = _unusable(address)
            if unusable:
                yield Problem(key, address, *unusable)
            elif holder is not None:
                message = (
                    f"{address} is {holder.node}'s own address on {holder.device}: packets that a node sends on do not reach "
                    "the node itself"
                )
                yield Problem(key, address, message, "run the server on another machine", Code.OWN_ADDRESS)
            elif address in new.vips and address not in added_vips:
                message = f"{address} is a VIP of this node, which does not balance twice"
                yield Problem(key, address, message, "name the servers themselves", Code.OWN_ADDRESS)
            elif address in broadcasts:
                on = broadcasts[address]
                yield Problem(key, address, f"{address} is the broadcast address of {on.device} of {on.node}", ONE_HOST)


def _unusable(text: str) -> tuple[str, str] | None:
    """Why no host on a network has this address, and the remedy; None: one may have it."""
    address = ipaddress.ip_address(text)
    if address.is_loopback:
        return f"{text} is a loopback address, which no packet on a network has", "use an address of the network"
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_link_local:
            message = f"{text} is a link-local address, which is valid on one link only"
            return message, "use a global or unique local (fd00::/8) one"
    elif address == LIMITED_BROADCAST or address in THIS_NETWORK:
        return f"{text} is no address of a host", ONE_HOST
    return None


def _broadcast(address: str, prefix_length: int) -> str:
    """The directed broadcast address of an IPv4 network; empty: it has none."""
    if ":" in address or prefix_length >= 31:
        return ""
    return str(ipaddress.ip_network(f"{address}/{prefix_length}", strict=False).broadcast_address)
