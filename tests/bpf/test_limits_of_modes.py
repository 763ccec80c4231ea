"""What a farm limits in the modes that tests/bpf/test_limits.py and test_loads.py leave out: dnat, dsr, ipip."""

from __future__ import annotations

from collections import Counter

import pytest

from bpf.constants import Mode, Protocol, Scheduler
from bpf.dataplane import FlowTuple, PutBackendLimits, PutFarmLimits
from ctl.dataplane.loads import loads_of
from tests.bpf.bed import Bed, Family
from tests.bpf.counted import FARM, FIRST
from tests.bpf.limited import SERVED, opens, other_client, put_list
from tests.bpf.one_way import PROTOCOLS, farm
from tests.bpf.packets import from_backend, from_client

MODES = pytest.mark.parametrize("mode", ["dnat", "dsr", "ipip", "ipip to the other family"])


@pytest.fixture
def bed(limited_bed: Bed) -> Bed:
    return limited_bed


def serve(
    bed: Bed,
    family: Family,
    mode: str,
    protocol: Protocol,
    backends_take: int = 0,
    scheduler: Scheduler = Scheduler.MAGLEV,
    **limits: int,
) -> None:
    """A farm with two backends. backends_take: connections of each; limits: of `PutFarmLimits`."""
    if mode == "dnat":
        both = [(family.far(number), 80) for number in (11, 12)]
        bed.farm(family.vip, *both, protocol=protocol, mode=Mode.DNAT, scheduler=scheduler)
    else:
        farm(bed, family, mode, 11, 12, protocol=protocol, scheduler=scheduler)
    ids = (FIRST, FIRST + 1)
    limits |= {"client_prefix_v4": 32, "client_prefix_v6": 64, "backends_limited": bool(backends_take)}
    limited = PutFarmLimits(FARM, candidates_v4=ids, candidates_v6=ids, **limits)  # type: ignore[arg-type]
    bed.plane.apply([*(PutBackendLimits(number, 1, backends_take) for number in ids), limited])


def refusal(protocol: Protocol) -> str:
    return "event_reset_sent" if protocol == Protocol.TCP else "event_unreachable_sent"


def loads(bed: Bed) -> list[int]:
    """Of both backends."""
    values = bed.plane.loads("backend")
    assert values is not None
    return [int(each) for each in loads_of(values)[FIRST : FIRST + 2]]


@MODES
@PROTOCOLS
def test_lists(bed: Bed, family: Family, protocol: Protocol, mode: str) -> None:
    put_list(bed, 7, f"{other_client(family, 1)}/{family.bits}")
    serve(bed, family, mode, protocol, deny=7)
    out = bed.send(bytes(from_client(family, protocol, source=other_client(family, 1))))
    assert out.moved == {"drop_denied": 1}
    assert opens(bed, family, other_client(family, 2), 5000, protocol) == SERVED
    serve(bed, family, mode, protocol, allow=7)
    assert opens(bed, family, other_client(family, 1), 5001, protocol) == SERVED
    assert opens(bed, family, other_client(family, 2), 5001, protocol) == "drop_denied"
    assert opens(bed, family, other_client(family, 2), 5000, protocol, "A") == SERVED, "it is open"


@MODES
@PROTOCOLS
def test_rate(bed: Bed, family: Family, protocol: Protocol, mode: str) -> None:
    serve(bed, family, mode, protocol, rate_interval_ns=1_000_000_000 // 5)
    verdicts = Counter(opens(bed, family, family.client, 30000 + n, protocol) for n in range(12))
    assert verdicts == {SERVED: 5, "drop_rate": 7}
    assert opens(bed, family, other_client(family, 1), 30000, protocol) == SERVED
    assert opens(bed, family, family.client, 30000, protocol) == SERVED, "a retransmission"
    bed.set_clock(1000.5)
    verdicts = Counter(opens(bed, family, family.client, 31000 + n, protocol) for n in range(5))
    assert verdicts == {SERVED: 2, "drop_rate": 3}


@MODES
@PROTOCOLS
def test_half_open(bed: Bed, family: Family, protocol: Protocol, mode: str) -> None:
    """Until the client has answered the SYN-ACK, or the server the datagram; one way: until the client has sent again."""
    serve(bed, family, mode, protocol, max_half_open=3, half_open_ticks=900)
    verdicts = Counter(opens(bed, family, family.client, 20000 + n, protocol) for n in range(5))
    assert verdicts == {SERVED: 3, "drop_half_open": 2}
    assert opens(bed, family, other_client(family, 1), 20000, protocol) == SERVED
    bed.set_clock(1000.3)
    if mode == "dnat":
        entry = bed.flows("embryonic", family)[FlowTuple(family.client, family.vip, 20000, 80, protocol)]
        reply = from_backend(family, entry.leaves.destination, family.client, 20000, protocol, port=80)
        assert bed.send(bytes(reply), "out0").verdict.startswith("forward")
    assert opens(bed, family, family.client, 20000, protocol, "A") == SERVED
    assert opens(bed, family, family.client, 20010, protocol) == SERVED
    assert opens(bed, family, family.client, 20011, protocol) == "drop_half_open"


@MODES
@PROTOCOLS
def test_connections_of_a_farm(bed: Bed, family: Family, protocol: Protocol, mode: str) -> None:
    serve(bed, family, mode, protocol, max_connections=3)
    assert [opens(bed, family, family.client, 40000 + n, protocol) for n in range(5)] == [SERVED] * 3 + ["drop_farm_full"] * 2
    refused = bed.send(bytes(from_client(family, protocol, source_port=40009)))
    assert refused.moved == {"drop_farm_full": 1, refusal(protocol): 1}
    assert opens(bed, family, family.client, 40001, protocol) == SERVED, "it is open"
    assert sum(loads(bed)) == 3
    if protocol == Protocol.TCP:
        assert opens(bed, family, family.client, 40000, flags="R") == SERVED
        assert opens(bed, family, family.client, 40010) == SERVED


@MODES
@PROTOCOLS
@pytest.mark.parametrize("scheduler", [Scheduler.MAGLEV, Scheduler.LEASTCONN], ids=lambda scheduler: scheduler.name.lower())
def test_connections_of_backends(bed: Bed, family: Family, protocol: Protocol, mode: str, scheduler: Scheduler) -> None:
    serve(bed, family, mode, protocol, 2, scheduler)
    verdicts = [opens(bed, family, family.client, 40000 + n, protocol) for n in range(6)]
    assert verdicts == [SERVED] * 4 + ["drop_backend_full"] * 2
    assert loads(bed) == [2, 2]
    refused = bed.send(bytes(from_client(family, protocol, source_port=40009)))
    assert refused.moved == {"drop_backend_full": 1, refusal(protocol): 1}
    assert opens(bed, family, family.client, 40001, protocol) == SERVED, "it is open"
