"""The services of backends as map entries: what a lookup finds is what the farms use, after any sequence of changes."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from bpf.constants import Protocol as Number
from bpf.constants import ServerFlag
from bpf.dataplane import DeleteServer, PutServer, ServerKey
from ctl.config.model import Backend, Farm, Mode, Protocol
from ctl.dataplane import servers

ADDRESSES = ("10.0.0.1", "10.0.0.2")


def looked_up(entries: Mapping[ServerKey, int], address: str, protocol: int, port: int) -> int:
    """As the program does: the host, the port, and if the host has ranges the longest prefix."""
    host = entries.get(ServerKey(address, protocol, 0), 0)
    exact = entries.get(ServerKey(address, protocol, port))
    if not host or exact is not None:
        return exact or 0
    if host & ServerFlag.RANGES:
        for bits in range(15, -1, -1):
            found = entries.get(ServerKey(address, protocol, port >> 16 - bits << 16 - bits, bits))
            if found is not None:
                return found
    return 0


def used(farms: Mapping[str, Farm], address: str, protocol: int, port: int) -> int:
    flags = 0
    for farm in farms.values():
        for backend in farm.backends:
            at = farm.port + port - backend.port
            listens = any(first <= at <= last for first, last in farm.port_ranges)
            if Number[farm.protocol.name] == protocol and backend.address == address and listens:
                flags |= ServerFlag.DNAT if farm.mode is Mode.DNAT else ServerFlag.SNAT
    return flags


@st.composite
def farm(draw: st.DrawFn, name: str) -> Farm:
    ports = draw(st.integers(1, 12))
    backends = draw(st.lists(st.tuples(st.sampled_from(ADDRESSES), st.integers(1, 30)), max_size=3, unique=True))
    return Farm(
        id=1,
        name=name,
        vip="10.9.9.9",
        port=100,
        port_last=99 + ports,
        more_ports=draw(st.sampled_from([(), ((120, 120), (124, 130))])),
        protocol=draw(st.sampled_from(Protocol)),
        mode=draw(st.sampled_from(Mode)),
        backends=tuple(Backend(number, *backend) for number, backend in enumerate(backends, 1)),
    )


@given(st.data())
def test_what_is_looked_up_is_what_is_used_after_every_change(data: st.DataObject) -> None:
    farms: dict[str, Farm] = {}
    state: servers.Servers = {}
    entries: dict[ServerKey, int] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from("abc"))
        before, now = farms.pop(name, None), data.draw(st.none() | farm(name))
        if now is not None:
            farms[name] = now
        state, operations = servers.follow(state, [(name, before, now)])
        for operation in operations:
            if isinstance(operation, PutServer):
                entries[operation.key] = operation.flags
            else:
                assert isinstance(operation, DeleteServer)
                del entries[operation.key]
        for address in ADDRESSES:
            for protocol in Number:
                for port in range(1, 45):
                    assert looked_up(entries, address, protocol, port) == used(farms, address, protocol, port)
    assert bool(entries) == any(each.backends for each in farms.values()), "nothing is left behind"


def test_a_change_of_something_else_writes_nothing() -> None:
    one = Farm(1, "web", "10.9.9.9", 80, 80, backends=(Backend(1, "10.0.0.1", 8080),))
    state, _ = servers.follow({}, [("web", None, one)])
    heavier = Farm(1, "web", "10.9.9.9", 80, 80, backends=(Backend(1, "10.0.0.1", 8080, weight=5),))
    assert servers.follow(state, [("web", one, heavier)]) == (state, [])


def test_the_last_port_is_the_end_of_a_range() -> None:
    wide = Farm(1, "web", "10.9.9.9", 100, 200, backends=(Backend(1, "10.0.0.1", 65500),))
    state, _ = servers.follow({}, [("web", None, wide)])
    entries = servers.server_flags(("10.0.0.1", 6), state["10.0.0.1", 6])
    assert looked_up(entries, "10.0.0.1", 6, 65535) == ServerFlag.SNAT
