"""Whether backends in the modes dsr and ipip can be reached as these modes need it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ctl.config.model import Config, Farm, Mode
from ctl.diagnosis.finding import Finding, Severity, ok

OUTER_BYTES = {False: 20, True: 40}
"""Length of the header that ipip adds, by whether the backend has an IPv6 address."""
USUAL_MTU, LEAST_MTU_V6 = 1500, 1280
"""What senders in networks of Ethernet use, and what every IPv6 sender may use (RFC 8200)."""
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Hop:
    """Where packets to a backend leave. gateway: empty if the backend is on the link."""

    device: str
    gateway: str
    mtu: int


def examine(
    config: Config, hops: Mapping[str, Hop | None], sources: Mapping[str, str], own: Collection[str]
) -> Iterator[Finding]:
    """hops: of each backend in these modes; None: no route. sources: the outer source by family, empty: none. own: the
    addresses of this node."""
    farms = [farm for farm in config.farms.values() if farm.mode in (Mode.DSR, Mode.IPIP)]
    found = [each for farm in farms for each in _farm(farm, hops)]
    found += _sources(farms, sources, own)
    yield from found[:SHOWN]
    if farms and not found:
        yield ok("one-way modes", f"{len(farms)} farms in mode dsr or ipip: their backends can be reached")


def _farm(farm: Farm, hops: Mapping[str, Hop | None]) -> Iterator[Finding]:
    for backend in farm.backends:
        hop = hops.get(backend.address)
        if hop is None:
            continue  # reported for every mode
        if farm.mode is Mode.DSR and hop.gateway:
            yield Finding(
                f"farm {farm.name}",
                Severity.FAIL,
                f"mode dsr needs backends on the link, but the way to {backend.address} is through the router {hop.gateway}, "
                "which sends its packets back",
                f"use mode ipip: xlbctl farm set {farm.name} --mode ipip",
            )
        if farm.mode is Mode.IPIP:
            overhead = OUTER_BYTES[":" in backend.address]
            if hop.mtu - overhead < USUAL_MTU:
                yield _small(farm, backend.address, hop, overhead)


def _small(farm: Farm, backend: str, hop: Hop, overhead: int) -> Finding:
    inner = hop.mtu - overhead
    unreachable = inner < LEAST_MTU_V6 and any(":" in vip for vip in farm.vips)
    return Finding(
        f"farm {farm.name}",
        Severity.FAIL if unreachable else Severity.WARN,
        f"the MTU of {hop.device} leaves {inner} bytes for packets to {backend}"
        + (", and IPv6 clients may send 1280" if unreachable else ": clients that send more get ICMP too big"),
        f"ip link set {hop.device} mtu {USUAL_MTU + overhead}, if the network carries it; else lower the MSS on the backends",
    )


def _sources(farms: Collection[Farm], sources: Mapping[str, str], own: Collection[str]) -> Iterator[Finding]:
    tunnelled = [(farm, each.address) for farm in farms if farm.mode is Mode.IPIP for each in farm.backends]
    for family, is_v6 in (("v4", False), ("v6", True)):
        used = [farm for farm, backend in tunnelled if (":" in backend) is is_v6]
        source, name = sources.get(family, ""), "IPv6" if is_v6 else "IPv4"
        if used and not source:
            yield Finding(
                "tunnel source",
                Severity.FAIL,
                f"this node has no {name} address from which to send to the backends of farm {used[0].name}: it drops packets",
                "add an address that is no VIP on the interface to the backends, or set data.tunnel_source in the node file",
            )
        elif used and source not in own:
            yield Finding(
                "tunnel source",
                Severity.WARN,
                f"{source} (data.tunnel_source) is no address of this node: ICMP errors about packets to backends go elsewhere",
                f"ip address add {source} dev lo",
            )
