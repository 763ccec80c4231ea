"""Units, plain tables and rates."""

from __future__ import annotations

import pytest

from ctl.cli import output
from ctl.cli.cluster import peer_fields
from ctl.cli.rates import Load, rates, sample
from ctl.cli.terminal.tables import Column, table_lines


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (7, "7"), (0.25, "0.2"), (999, "999"), (1000, "1k"), (1234, "1.23k"), (45_600_000, "45.6M"), (999_999, "1M")],
)
def test_count(value: float, expected: str) -> None:
    assert output.count(value) == expected


def test_units() -> None:
    assert output.byte_count(950) == "950 B"
    assert output.byte_count(1_230_000) == "1.23 MB"
    assert output.bit_rate(125_000_000) == "1 Gbit/s"
    assert output.bit_rate(1) == "8 bit/s"
    assert output.duration(0.2) == "0 s"
    assert output.duration(200) == "3 min 20 s"
    assert output.duration(187_300) == "2 d 4 h"
    assert output.share(1, 3) == "33.3 %"
    assert output.share(1, 0) == ""


def test_a_plain_table_is_aligned_and_has_no_empty_cell() -> None:
    lines = table_lines([Column("NAME"), Column("PACKETS", right=True)], [["web", "12"], ["dns-internal", ""]])
    assert lines == ["NAME          PACKETS", "web                12", "dns-internal        -"]


def test_a_backends_error_cannot_drive_the_terminal() -> None:
    assert output.printable("bad \x1b[2J gateway") == "bad \\x1b[2J gateway"
    assert output.printable("grün") == "grün"


def _farm(packets: int, backend_packets: int) -> dict[str, object]:
    backend = {"address": "10.0.0.1", "port": 80, "packets": backend_packets, "bytes": 0, "new_connections": 0}
    return {"name": "web", "packets": packets, "bytes": 1000, "new_connections": 5, "drops": 0, "backends": [backend]}


def test_rates_are_differences_over_time() -> None:
    before = sample(10.0, [{"name": "forward_tx", "packets": 100}], [_farm(100, 60)])
    after = sample(12.0, [{"name": "forward_tx", "packets": 300}, {"name": "drop_fenced", "packets": 4}], [_farm(200, 80)])
    change = rates(before, after)
    assert change.counters == {"forward_tx": 100, "drop_fenced": 2}
    assert change.farms == {"web": Load(packets=50)}
    assert change.backends == {("web", "10.0.0.1:80"): Load(packets=10)}
    assert change.total == Load(packets=50)


def test_a_reset_counter_counts_from_zero() -> None:
    change = rates(
        sample(0.0, [{"name": "forward_tx", "packets": 100}], []), sample(1.0, [{"name": "forward_tx", "packets": 7}], [])
    )
    assert change.counters == {"forward_tx": 7}


@pytest.mark.parametrize(("active", "data"), [(False, "no"), (True, "not expected (this node is active)")])
def test_the_active_node_does_not_expect_advertisements(active: bool, data: str) -> None:
    peer = {"name": "lb2", "role": "backup", "alive": True, "last_heard_ms": 40}
    for heard in (False, True):
        fields = dict(peer_fields(peer, None, {"cluster": True, "data": heard}, active))
        assert fields["heartbeats"] == f"cluster yes, data {'yes' if heard else data}"
    assert dict(peer_fields(peer, None, {"cluster": False, "data": True}, active))["heartbeats"] == "cluster no, data yes"
